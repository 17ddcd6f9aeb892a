"""Both directions' short depthwise convolution of the Mamba mixer, with its backends."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from rmeeto.ops import triton_support
from rmeeto.ops.backend import Backend, Operator
from rmeeto.ops.conv1d import cpp, eager, naive, upstream
from rmeeto.ops.cpp_support import built

_TRITON = "rmeeto.ops.conv1d.triton_conv1d"

CONV1D = Operator(
    "conv1d",
    [
        Backend("triton", ("cuda",), lambda: triton_support.implementation(_TRITON, "bidirectional_conv1d")),
        Backend("upstream", ("cuda",), upstream.load),
        Backend("cpp", ("cpu",), partial(built, cpp.bidirectional_conv1d)),
        Backend("torch", ("any",), lambda: eager.eager_bidirectional_conv1d),
        Backend("naive", ("any",), lambda: naive.naive_bidirectional_conv1d, automatic=False),
    ],
    whole=cpp.bidirectional_conv1d,
)


def bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Causal convolution and SiLU of one input in both directions.

    Args:
        x: (B, L, D).
        weight, bias: (D, 1, K) and (D,) of the forward direction: token t sees t - K + 1, ..., t.
        weight_b, bias_b: of the backward direction: token t sees t, ..., t + K - 1.
        backend: ``auto`` or a backend's name.

    Returns:
        Two (B, L, D) tensors, both in the original token order.
    """
    return CONV1D.implementation(x.device.type, backend)(x, weight, bias, weight_b, bias_b)
