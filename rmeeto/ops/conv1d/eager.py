"""The depthwise convolution without transposes or flips: x (B, L, D), weight (D, 1, K), bias (D,)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rmeeto.autocast import full_precision


def eager_causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool = False) -> Tensor:
    """Same function as `naive_causal_conv1d`, as K shifted multiply-adds: no transpose, no flip."""
    kernel, length = weight.shape[-1], x.shape[1]
    with full_precision(x.device):
        taps = weight.squeeze(1).to(x.dtype).unbind(-1)
        padded = F.pad(x, (0, 0, 0, kernel - 1) if reverse else (0, 0, kernel - 1, 0))
        y = bias.to(x.dtype)
        for k, tap in enumerate(reversed(taps) if reverse else taps):
            y = torch.addcmul(y, padded[:, k : k + length], tap)
        return F.silu(y)


def eager_bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Same function as `naive_bidirectional_conv1d`."""
    return eager_causal_conv1d(x, weight, bias), eager_causal_conv1d(x, weight_b, bias_b, reverse=True)
