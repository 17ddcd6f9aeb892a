"""Shared by tests of several parts."""

from __future__ import annotations

from torch import Tensor

from benchmarks.parity import TOLERANCE, rms_ratio

__all__ = ["TOLERANCE", "assert_close_rms", "rms_ratio"]


def assert_close_rms(got: Tensor, expected: Tensor, name: str = "", tolerance: float | None = None) -> None:
    """Assert the same shape and a small RMS ratio; the tolerance is by ``got``'s type unless given."""
    assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    ratio = rms_ratio(got, expected)
    limit = TOLERANCE[got.dtype] if tolerance is None else tolerance
    assert ratio <= limit, f"{name}: RMS ratio {ratio:.1e} > {limit:.0e}"
