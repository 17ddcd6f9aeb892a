"""Add to the residual stream and normalise, with its backends."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from rmeeto.ops import triton_support
from rmeeto.ops.add_norm import cpp, naive
from rmeeto.ops.backend import Backend, Operator
from rmeeto.ops.cpp_support import built

_TRITON = "rmeeto.ops.add_norm.triton_add_norm"

ADD_NORM = Operator(
    "add_rms_norm",
    [
        Backend("triton", ("cuda",), lambda: triton_support.implementation(_TRITON, "add_rms_norm")),
        Backend("cpp", ("cpu",), partial(built, cpp.add_rms_norm)),
        Backend("torch", ("any",), lambda: naive.naive_add_rms_norm),
    ],
    whole=cpp.add_rms_norm,
)


def add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Add ``hidden`` to the residual stream and RMS-normalise the sum.

    Args:
        hidden: (B, L, C).
        residual: (B, L, C) in fp32, or None at the first block.
        weight: (C,).
        eps: added to the mean square.
        backend: ``auto`` or a backend's name.

    Returns:
        The normalised sum, (B, L, C) in the weight's type (on Triton under autocast in autocast's type: the projection
        behind it would cast it anyway), and the sum itself, (B, L, C) in fp32 (float64 for float64).
    """
    return ADD_NORM.implementation(hidden.device.type, backend)(hidden, residual, weight, eps)
