# mypy: disallow-untyped-defs=False, check-untyped-defs=False
"""Device functions that several Triton kernels share."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def inverse(x):
    """1 / x of x >= 1, in three instructions instead of a division's seven: relative error 3e-7."""
    r = tl.rsqrt(x)
    return r * r


@triton.jit
def sigmoid(x):
    return inverse(1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) as max(x, 0) + 2 atanh(e / (2 + e)), e = exp(-|x|): relative error 1e-7 at small steps too."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e * inverse(2.0 + e)
    q = s * s
    series = 0.33333333 + q * (0.2 + q * (0.14285714 + q * (0.11111111 + q * 0.09090909)))
    return tl.maximum(x, 0.0) + 2.0 * (s + s * q * series)


@triton.jit
def exp2_polynomial(x):
    """2**x for x <= 0 on the FMA units: the minimax polynomial of degree 5 on [-1/2, 1/2], relative error 1e-7."""
    x = tl.maximum(x, -126.0)
    shifted = x + 12582912.0  # 1.5 * 2**23: the last bits of the sum are x, rounded to an integer
    exponent = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    r = x - (shifted - 12582912.0)
    p = 0.055507131 + r * (0.009675541 + r * 0.0013276472)
    p = 1.0 + r * (0.69314694 + r * (0.2402212 + r * p))
    return (p.to(tl.int32, bitcast=True) + (exponent << 23)).to(tl.float32, bitcast=True)


@triton.jit
def take(tile, t: tl.constexpr, rows):
    """Row t of a tile along its first axis; ``rows`` are the row numbers, shaped to broadcast against the tile.

    Where a thread holds all rows this costs no instruction: summed as integers, the zeros of the others vanish.
    """
    bits = tl.where(rows == t, tile.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, axis=0).to(tl.float32, bitcast=True)
