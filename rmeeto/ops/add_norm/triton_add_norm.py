# mypy: disallow-untyped-defs=False, check-untyped-defs=False
"""Residual add and RMS norm on Triton kernels, registered with torch.library as ``rmeeto::triton_add_rms_norm``.

Shapes: hidden, residual (B, L, C), weight (C,).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmeeto.ops.add_norm import naive
from rmeeto.ops.library import operator
from rmeeto.ops.triton_support import FUSED, dispatch_keys, num_sms, on_device, power_of_two

ROWS = 4  # tokens a program normalises at a time, one a warp
WIDEST = 4096
STAGES = 2  # groups of rows in flight


@triton.jit(do_not_specialize=["num_rows"])
def norm_fwd_kernel(
    hidden, residual, weight, normed, total,
    num_rows, eps,
    CHANNELS: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, STORE_TOTAL: tl.constexpr,
):  # fmt: skip
    """total = hidden + residual in fp32; normed = total / rms(total) * weight. Grid: ROWS tokens each."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, C)
    inside = channel < CHANNELS
    mask = (row < num_rows)[:, None] & inside[None, :]
    offsets = row[:, None] * CHANNELS + channel[None, :]
    x = tl.load(hidden + offsets, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual + offsets, mask=mask, other=0.0)
    if STORE_TOTAL:
        tl.store(total + offsets, x, mask=mask)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / CHANNELS + eps)
    w = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + offsets, x * scale[:, None] * w[None, :], mask=mask)


@triton.jit(do_not_specialize=["num_rows", "rows_each"])
def norm_bwd_kernel(
    dnormed, dtotal, total, weight, dhidden, dresidual, dweight,
    num_rows, rows_each, eps,
    CHANNELS: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_DTOTAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradient of the sum (as dhidden and dresidual), and of the weight over ``rows_each`` tokens: (programs, C)."""
    channel = tl.arange(0, C)
    inside = channel < CHANNELS
    w = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((ROWS, C), tl.float32)
    start = tl.program_id(0).to(tl.int64) * rows_each
    stop = tl.minimum(start + rows_each, num_rows)
    for first in tl.range(start, stop, ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        mask = (row < stop)[:, None] & inside[None, :]
        offsets = row[:, None] * CHANNELS + channel[None, :]
        x = tl.load(total + offsets, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dnormed + offsets, mask=mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / CHANNELS + eps)
        unit = x * scale[:, None]
        g = dy * w[None, :]
        dx = scale[:, None] * (g - unit * (tl.sum(g * unit, axis=1) / CHANNELS)[:, None])
        if HAS_DTOTAL:
            dx += tl.load(dtotal + offsets, mask=mask, other=0.0)
        sums += dy * unit
        tl.store(dhidden + offsets, dx, mask=mask)
        if HAS_RESIDUAL:
            tl.store(dresidual + offsets, dx, mask=mask)
    tl.store(dweight + tl.program_id(0) * CHANNELS + channel, tl.sum(sums, axis=0), mask=inside)


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Same function as `naive_add_rms_norm`; float64, very wide tokens and empty tensors go to it.

    Under autocast the normalised sum comes in autocast's type: the projection behind it would cast it anyway.
    """
    wide = residual is not None and residual.dtype != torch.float32
    if hidden.dtype == torch.float64 or wide or hidden.shape[-1] > WIDEST or hidden.numel() == 0:
        return naive.naive_add_rms_norm(hidden, residual, weight, eps)
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
    normed, total = _norm(hidden, residual, weight, dtype, eps)
    # The operator may not hand its input back, so the sum of nothing but an fp32 hidden state is not its output.
    return normed, total if _stores_total(hidden, residual) else hidden


def _stores_total(hidden: Tensor, residual: Tensor | None) -> bool:
    return residual is not None or hidden.dtype != torch.float32


def _forward(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, dtype: torch.dtype, eps: float
) -> tuple[Tensor, Tensor]:
    hidden, channels = hidden.contiguous(), hidden.shape[-1]
    normed, total = _forward_fake(hidden, residual, weight, dtype, eps)
    num_rows = hidden.numel() // channels
    with on_device(hidden):
        norm_fwd_kernel[(-(-num_rows // ROWS),)](
            hidden, hidden if residual is None else residual.contiguous(), weight.contiguous(), normed, total,
            num_rows, eps, CHANNELS=channels, C=power_of_two(channels), ROWS=ROWS,
            HAS_RESIDUAL=residual is not None, STORE_TOTAL=_stores_total(hidden, residual), num_warps=ROWS,
            **FUSED,
        )  # fmt: skip
    return normed, total


def _backward_kernel(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    dnormed, dtotal, total, weight, _, has_residual, eps = arguments
    dhidden, dresidual, dweight = _backward_fake(*arguments)
    total, channels = total.contiguous(), total.shape[-1]
    num_rows = total.numel() // channels
    rows_each = -(-num_rows // (4 * num_sms(total.device) * ROWS)) * ROWS
    programs = -(-num_rows // rows_each)
    partial = dweight.new_empty((programs, channels))
    with on_device(total):
        norm_bwd_kernel[(programs,)](
            dnormed.contiguous(), total if dtotal is None else dtotal.contiguous(), total, weight.contiguous(),
            dhidden, dresidual, partial, num_rows, rows_each, eps,
            CHANNELS=channels, C=power_of_two(channels), ROWS=ROWS,
            HAS_RESIDUAL=has_residual, HAS_DTOTAL=dtotal is not None, STAGES=STAGES, num_warps=ROWS, **FUSED,
        )  # fmt: skip
    torch.sum(partial, 0, out=dweight)
    return dhidden, dresidual, dweight


def _forward_fake(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, dtype: torch.dtype, eps: float
) -> tuple[Tensor, Tensor]:
    shape = hidden.shape if _stores_total(hidden, residual) else (0,)
    return hidden.new_empty(hidden.shape, dtype=dtype), hidden.new_empty(shape, dtype=torch.float32)


def _backward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, total, weight, dtype, has_residual, _ = arguments
    dresidual = total.new_empty(total.shape if has_residual else (0,), dtype=torch.float32)
    dweight = weight.new_empty(weight.shape, dtype=torch.float32)
    return total.new_empty(total.shape, dtype=dtype), dresidual, dweight


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    hidden, residual, weight, _, eps = inputs
    ctx.arguments = hidden.dtype, residual is not None, eps
    ctx.stores_total = _stores_total(hidden, residual)
    if not ctx.stores_total:
        ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1] if ctx.stores_total else hidden, weight)


def _backward(ctx: Any, dnormed: Tensor, dtotal: Tensor) -> tuple:
    total, weight = ctx.saved_tensors
    given = dtotal if ctx.stores_total else None
    dhidden, dresidual, dweight = _norm_backward(dnormed, given, total, weight, *ctx.arguments)
    return dhidden, dresidual if ctx.arguments[1] else None, dweight.to(weight.dtype), None, None


_norm = operator(
    "triton_add_rms_norm",
    "(Tensor hidden, Tensor? residual, Tensor weight, ScalarType dtype, float eps) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    _setup_context,
    _backward,
    dispatch_keys(),
)
_norm_backward = operator(
    "triton_add_rms_norm_backward",
    "(Tensor dnormed, Tensor? dtotal, Tensor total, Tensor weight, ScalarType dtype, bool has_residual, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
    keys=dispatch_keys(),
)
