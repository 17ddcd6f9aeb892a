# mypy: disallow-untyped-defs=False, check-untyped-defs=False
"""Merging on Triton kernels, registered with torch.library as ``rmeeto::triton_merge_tokens``.

Shapes: hidden, residual (B, L, C), size (B, L, 1), keep (B, L - r), source, destination (B, r).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from rmeeto.ops.token_merge.library import merge_backward_fake, merge_fake, merging
from rmeeto.ops.triton_support import (
    FUSED,
    STORAGE,
    check_batch,
    contiguous_rows,
    dispatch_keys,
    on_device,
    power_of_two,
)

TILE = {"T": 8, "W": 256, "num_warps": 4}  # tokens x channels of a program


@triton.jit
def next_source(targets, order, after, first, r, T: tl.constexpr):
    """The first source behind ``after`` that goes into one of the tokens first, ..., first + T - 1; r if none does."""
    hit = (order > after) & (order < r) & (targets >= first) & (targets < first + T)
    return tl.min(tl.where(hit, order, r), axis=0)


@triton.jit(do_not_specialize=["length", "r"])
def merge_fwd_kernel(
    hidden, residual, size, keep, source, destination, merged, new_size,
    length, r, hidden_batch, hidden_row, residual_batch, residual_row,
    CHANNELS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_SIZE: tl.constexpr,
    T: tl.constexpr, W: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Gather, add the residual, average by size. Grid: tiles of the tokens that stay, B, tiles of channels."""
    first, batch = tl.program_id(0) * T, tl.program_id(1).to(tl.int64)
    channels = tl.program_id(2) * W + tl.arange(0, W)
    inside = channels < CHANNELS
    kept = length - r
    place = first + tl.arange(0, T)
    live = place < kept
    mask = live[:, None] & inside[None, :]
    hidden += batch * hidden_batch
    residual += batch * residual_batch
    size += batch * length

    token = tl.load(keep + batch * kept + place, mask=live, other=0)
    total = tl.load(hidden + token[:, None] * hidden_row + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        total += tl.load(residual + token[:, None] * residual_row + channels[None, :], mask=mask, other=0.0)
    weight = tl.load(size + token, mask=live, other=1.0) if HAS_SIZE else tl.full((T,), 1.0, tl.float32)
    total *= weight[:, None]

    order = tl.arange(0, R)
    targets = tl.load(destination + batch * r + order, mask=order < r, other=-1).to(tl.int32)
    n = next_source(targets, order, -1, first, r, T)
    while n < r:
        gone = tl.load(source + batch * r + n)
        x = tl.load(hidden + gone * hidden_row + channels, mask=inside, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            x += tl.load(residual + gone * residual_row + channels, mask=inside, other=0.0)
        one = tl.load(size + gone) if HAS_SIZE else 1.0
        here = place == tl.load(destination + batch * r + n)
        total += tl.where(here[:, None], (x * one)[None, :], 0.0)
        weight += tl.where(here, one, 0.0)
        n = next_source(targets, order, n, first, r, T)
    row = batch * kept + place
    tl.store(merged + row[:, None] * CHANNELS + channels[None, :], total / weight[:, None], mask=mask)
    if tl.program_id(2) == 0:
        tl.store(new_size + row, weight, mask=live)


@triton.jit(do_not_specialize=["length", "r"])
def merge_bwd_kernel(
    dmerged, size, new_size, keep, source, destination, dhidden, dresidual,
    length, r,
    CHANNELS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_SIZE: tl.constexpr,
    T: tl.constexpr, W: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Each token's share of the gradient of what it went into; the grid of the forward kernel, so no write collides."""
    first, batch = tl.program_id(0) * T, tl.program_id(1).to(tl.int64)
    channels = tl.program_id(2) * W + tl.arange(0, W)
    inside = channels < CHANNELS
    kept = length - r
    place = first + tl.arange(0, T)
    live = place < kept
    mask = live[:, None] & inside[None, :]
    row = batch * kept + place
    size += batch * length
    dhidden += batch * length * CHANNELS
    dresidual += batch * length * CHANNELS

    gradient = tl.load(dmerged + row[:, None] * CHANNELS + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    gradient /= tl.load(new_size + row, mask=live, other=1.0)[:, None]
    token = tl.load(keep + batch * kept + place, mask=live, other=0)
    share = gradient
    if HAS_SIZE:
        share *= tl.load(size + token, mask=live, other=1.0)[:, None]
    offsets = token[:, None] * CHANNELS + channels[None, :]
    tl.store(dhidden + offsets, share, mask=mask)
    if HAS_RESIDUAL:
        tl.store(dresidual + offsets, share, mask=mask)

    order = tl.arange(0, R)
    targets = tl.load(destination + batch * r + order, mask=order < r, other=-1).to(tl.int32)
    n = next_source(targets, order, -1, first, r, T)
    while n < r:
        gone = tl.load(source + batch * r + n)
        here = place == tl.load(destination + batch * r + n)
        part = tl.sum(tl.where(here[:, None], gradient, 0.0), axis=0)
        if HAS_SIZE:
            part *= tl.load(size + gone)
        tl.store(dhidden + gone * CHANNELS + channels, part, mask=inside)
        if HAS_RESIDUAL:
            tl.store(dresidual + gone * CHANNELS + channels, part, mask=inside)
        n = next_source(targets, order, n, first, r, T)


def _forward(hidden: Tensor, residual: Tensor | None, size: Tensor | None, *plan: Tensor) -> tuple[Tensor, Tensor]:
    check_batch(hidden)
    (hidden,) = contiguous_rows(hidden)
    (stream,) = contiguous_rows(hidden if residual is None else residual)
    merged, new_size = merge_fake(hidden, residual, size, *plan)
    keep, source, destination = (positions.contiguous() for positions in plan)
    if merged.numel() == 0:
        return merged, new_size
    with on_device(hidden):
        merge_fwd_kernel[_grid(merged)](
            hidden, stream, _contiguous(size, new_size), keep, source, destination, merged, new_size,
            hidden.shape[1], source.shape[1],
            *hidden.stride()[:2], *stream.stride()[:2], **_constants(hidden, residual is not None, size, source),
        )  # fmt: skip
    return merged, new_size


def _backward(dmerged: Tensor, size: Tensor | None, new_size: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *plan, dtype, has_residual = arguments
    keep, source, destination = (positions.contiguous() for positions in plan)
    dmerged = dmerged.contiguous()
    dhidden, dresidual = merge_backward_fake(dmerged, size, new_size, *arguments)
    if dmerged.numel() == 0:
        return dhidden, dresidual
    with on_device(dmerged):
        merge_bwd_kernel[_grid(dmerged)](
            dmerged, _contiguous(size, new_size), new_size, keep, source, destination, dhidden, dresidual,
            dhidden.shape[1], source.shape[1], **_constants(dhidden, has_residual, size, source),
        )  # fmt: skip
    return dhidden, dresidual


def _grid(merged: Tensor) -> tuple[int, int, int]:
    batch, kept, channels = merged.shape
    return -(-kept // TILE["T"]), batch, -(-channels // TILE["W"])


def _constants(hidden: Tensor, has_residual: bool, size: Tensor | None, source: Tensor) -> dict[str, Any]:
    flags = {"HAS_RESIDUAL": has_residual, "HAS_SIZE": size is not None}
    return {"CHANNELS": hidden.shape[2], "R": power_of_two(source.shape[1]), **flags, **TILE, **FUSED}


def _contiguous(tensor: Tensor | None, instead: Tensor) -> Tensor:
    return instead if tensor is None else tensor.contiguous()


merge_tokens = merging("triton_merge_tokens", _forward, _backward, STORAGE, dispatch_keys())
