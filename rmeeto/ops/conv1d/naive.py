"""Depthwise causal convolution with SiLU, token-major: x (B, L, D), weight (D, 1, K), bias (D,)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def naive_causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool = False) -> Tensor:
    """silu(bias + sum_k weight[k] * x[t - K + 1 + k]), zeros before the first token.

    With ``reverse`` the sequence is convolved from its end: token t sees t, t + 1, ..., t + K - 1.
    """
    x = x.flip(1) if reverse else x
    kernel = weight.shape[-1]
    y = F.conv1d(F.pad(x.transpose(1, 2), (kernel - 1, 0)), weight.to(x.dtype), bias.to(x.dtype), groups=x.shape[-1])
    y = F.silu(y).transpose(1, 2)
    return y.flip(1) if reverse else y


def naive_bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
) -> tuple[Tensor, Tensor]:
    """The forward and the backward convolution of one input."""
    return naive_causal_conv1d(x, weight, bias), naive_causal_conv1d(x, weight_b, bias_b, reverse=True)
