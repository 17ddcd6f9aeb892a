"""Shared by tests of several parts."""

from __future__ import annotations

import torch
from torch import Tensor

# RMS of the difference over RMS of the reference, by the type that values are stored in.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-3}


def rms_ratio(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of the expected values; infinite if anything is not finite."""
    got, expected = got.detach().double(), expected.detach().double()
    if not torch.isfinite(got).all():
        return float("inf")
    scale = expected.square().mean().sqrt().clamp_min(1e-30)
    return float((got - expected).square().mean().sqrt() / scale)


def assert_close_rms(got: Tensor, expected: Tensor, name: str = "", tolerance: float | None = None) -> None:
    """Assert the same shape and a small RMS ratio; the tolerance is by ``got``'s type unless given."""
    assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    ratio = rms_ratio(got, expected)
    limit = TOLERANCE[got.dtype] if tolerance is None else tolerance
    assert ratio <= limit, f"{name}: RMS ratio {ratio:.1e} > {limit:.0e}"
