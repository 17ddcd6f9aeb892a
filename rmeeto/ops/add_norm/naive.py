"""Residual add and RMS normalisation: hidden, residual (B, L, C), weight (C,)."""

from __future__ import annotations

import torch
from torch import Tensor


def naive_add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """residual + hidden in fp32 (or wider), and its RMS norm in the weight's type."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    residual = hidden.to(dtype) if residual is None else residual + hidden.to(dtype)
    normed = residual * torch.rsqrt(residual.square().mean(-1, keepdim=True) + eps)
    return normed.to(weight.dtype) * weight, residual
