# mypy: disallow-untyped-defs=False, check-untyped-defs=False
"""Matching on a Triton kernel, registered with torch.library as ``rmeeto::triton_match_tokens``.

B batch, L tokens, C channels, S = L // 2 sources, D = (L - 1) // 2 destinations. Patch i is the i-th token that is not
set aside; even patches are sources, odd ones destinations.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmeeto.ops.token_merge.library import match_fake, matching
from rmeeto.ops.triton_support import (
    FUSED,
    STORAGE,
    check_batch,
    contiguous_rows,
    dispatch_keys,
    on_device,
    power_of_two,
)

# Up to this many sources one program matches an image from its scores to its plan. Beyond, the scores of an image
# are shared out over programs and a second kernel ranks them.
ONE_KERNEL = 256
# Sources, destinations and channels of a tile; fp32 products go to the FMA units, which keep more in registers.
TILE, TILE_FP32 = (128, 64), (64, 32)
STAGES = 2  # tiles of channels in flight


@triton.jit
def token_of(patch, aside):
    return patch + (patch >= aside)


@triton.jit
def store_best(
    metric, row, aside, first, score, pick, num_sources, num_destinations,
    CHANNELS: tl.constexpr, S: tl.constexpr, D: tl.constexpr, C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the largest cosine similarity, and its destination, of the sources from ``first`` to ``first + S``.

    Products of the metric as it is stored, scaled by the norms afterwards. fp32 holds the products of half precision
    exactly, so the tensor cores give the ranking of an fp32 computation; TF32, for an fp32 metric, would not.
    """
    sources, channel = first + tl.arange(0, S), tl.arange(0, C)
    a_rows = metric + token_of(2 * sources, aside)[:, None] * row
    best = tl.full((S,), float("-inf"), tl.float32)
    chosen = tl.zeros((S,), tl.int32)
    for start in tl.range(0, num_destinations, D):
        destinations = start + tl.arange(0, D)
        b_rows = metric + token_of(2 * destinations + 1, aside)[None, :] * row
        product = tl.zeros((S, D), tl.float32)
        a_square, b_square = tl.zeros((S,), tl.float32), tl.zeros((D,), tl.float32)
        for c in tl.range(0, CHANNELS, C, num_stages=STAGES):
            inside = c + channel < CHANNELS
            a = tl.load(
                a_rows + (c + channel)[None, :],
                mask=(sources < num_sources)[:, None] & inside[None, :],
                other=0.0,
            )
            b = tl.load(
                b_rows + (c + channel)[:, None],
                mask=(destinations < num_destinations)[None, :] & inside[:, None],
                other=0.0,
            )
            product = tl.dot(a, b, product, input_precision="ieee")
            a, b = a.to(tl.float32), b.to(tl.float32)
            a_square += tl.sum(a * a, axis=1)
            b_square += tl.sum(b * b, axis=0)
        a_norm, b_norm = tl.maximum(tl.sqrt(a_square), 1e-12), tl.maximum(tl.sqrt(b_square), 1e-12)
        similarity = product / b_norm[None, :] / a_norm[:, None]
        # A nan would leave sources without a rank, and places in the plan that nothing is written to.
        valid = (destinations < num_destinations)[None, :] & (similarity == similarity)
        similarity = tl.where(valid, similarity, float("-inf"))
        here, which = tl.max(similarity, axis=1, return_indices=True, return_indices_tie_break_left=True)
        chosen = tl.where(here > best, start + which, chosen)
        best = tl.maximum(best, here)
    tl.store(score + sources, best, mask=sources < num_sources)
    tl.store(pick + sources, chosen, mask=sources < num_sources)


@triton.jit
def store_rank(score, rank, num_sources, S: tl.constexpr, OTHERS: tl.constexpr):
    """How many sources are more similar, or as similar and in a lower position."""
    for first in tl.range(0, num_sources, S):
        sources = first + tl.arange(0, S)
        own = tl.load(score + sources, mask=sources < num_sources, other=0.0)[:, None]
        better = tl.zeros((S,), tl.int32)
        for start in tl.range(0, num_sources, OTHERS):
            others = start + tl.arange(0, OTHERS)
            theirs = tl.load(score + others, mask=others < num_sources, other=0.0)[None, :]
            ahead = (theirs > own) | ((theirs == own) & (others[None, :] < sources[:, None]))
            better += tl.sum((ahead & (others < num_sources)[None, :]).to(tl.int32), axis=1)
        tl.store(rank + sources, better, mask=sources < num_sources)


@triton.jit
def store_plan(
    pick, rank, keep, source, destination, aside, length, num_sources, num_destinations, r,
    EXACT: tl.constexpr, S: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """Write keep, source and destination; returns the place of the token that is set aside."""
    place = aside * (length - r) // length
    if EXACT:
        place = aside
        for start in tl.range(0, num_sources, OTHERS):
            others = start + tl.arange(0, OTHERS)
            moved = tl.load(rank + others, mask=others < num_sources, other=length) < r
            place -= tl.sum((moved & (2 * others < aside)).to(tl.int32), axis=0)
    for first in tl.range(0, num_sources, S):
        sources = first + tl.arange(0, S)
        inside = sources < num_sources
        own = tl.load(rank + sources, mask=inside, other=length)
        into = tl.load(pick + sources, mask=inside, other=0)
        # Moved sources before the patch, and before the one that it goes into.
        before, before_pick = tl.zeros((S,), tl.int32), tl.zeros((S,), tl.int32)
        for start in tl.range(0, num_sources, OTHERS):
            others = start + tl.arange(0, OTHERS)
            moved = (tl.load(rank + others, mask=others < num_sources, other=length) < r)[None, :]
            before += tl.sum((moved & (others[None, :] < sources[:, None])).to(tl.int32), axis=1)
            before_pick += tl.sum((moved & (others[None, :] <= into[:, None])).to(tl.int32), axis=1)
        goes = own < r
        at = 2 * sources - before
        tl.store(keep + at + (at >= place), token_of(2 * sources, aside), mask=inside & (goes == 0))
        at = 2 * sources + 1 - before - goes.to(tl.int32)
        tl.store(keep + at + (at >= place), token_of(2 * sources + 1, aside), mask=sources < num_destinations)
        at = 2 * into + 1 - before_pick
        tl.store(source + own, token_of(2 * sources, aside), mask=inside & goes)
        tl.store(destination + own, at + (at >= place), mask=inside & goes)
    tl.store(keep + place, aside)
    return place


@triton.jit(do_not_specialize=["length", "r", "index"])
def match_kernel(
    metric, class_index, keep, source, destination, new_index, score, pick, rank,
    metric_batch, metric_row, length, r, index,
    CHANNELS: tl.constexpr, GIVEN: tl.constexpr, EXACT: tl.constexpr, SCORES: tl.constexpr, PLAN: tl.constexpr,
    S: tl.constexpr, D: tl.constexpr, C: tl.constexpr, OTHERS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Scores, best destinations, ranks and plan of an image. Grid: B, and blocks of sources unless PLAN.

    SCORES: compute scores and picks. PLAN: rank them and write the plan. Both: one kernel for all.
    """
    batch = tl.program_id(0).to(tl.int64)
    if GIVEN:
        aside = tl.load(class_index + batch).to(tl.int32)
    else:
        aside = index
    num_sources, num_destinations = length // 2, (length - 1) // 2
    score += batch * num_sources
    pick += batch * num_sources
    rank += batch * num_sources
    if SCORES:
        for first in tl.range(tl.program_id(1) * S, num_sources, S * tl.num_programs(1)):
            store_best(
                metric + batch * metric_batch, metric_row, aside, first, score, pick, num_sources, num_destinations,
                CHANNELS, S, D, C, STAGES,
            )  # fmt: skip
    if PLAN:
        tl.debug_barrier()  # each step reads what other threads of this program have written
        store_rank(score, rank, num_sources, S, OTHERS)
        tl.debug_barrier()
        place = store_plan(
            pick, rank, keep + batch * (length - r), source + batch * r, destination + batch * r,
            aside, length, num_sources, num_destinations, r, EXACT, S, OTHERS,
        )  # fmt: skip
        if EXACT:
            tl.store(new_index + batch, place)


def _forward(
    metric: Tensor, r: int, class_index: Tensor | None, index: int, exact: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_batch(metric)
    (metric,) = contiguous_rows(metric)
    batch, length, channels = metric.shape
    outputs = keep, source, destination, place = match_fake(metric, r, class_index, index, exact)
    if batch == 0:
        return outputs
    num_sources = length // 2
    score = metric.new_empty((batch, num_sources), dtype=torch.float32)
    pick, rank = torch.empty_like(score, dtype=torch.int32), torch.empty_like(score, dtype=torch.int32)
    side, depth = TILE_FP32 if metric.dtype == torch.float32 else TILE
    side, depth = min(side, power_of_two(num_sources, 16)), min(depth, power_of_two(channels, 16))
    together = num_sources <= ONE_KERNEL
    stages = [(True, True, 1)] if together else [(True, False, -(-num_sources // side)), (False, True, 1)]
    with on_device(metric):
        for scores, plan, programs in stages:
            match_kernel[(batch, programs)](
                metric, metric if class_index is None else class_index, keep, source, destination, place,
                score, pick, rank, metric.stride(0), metric.stride(1), length, r, index,
                CHANNELS=channels, GIVEN=class_index is not None, EXACT=exact, SCORES=scores, PLAN=plan,
                S=side, D=side, C=depth, OTHERS=min(32, side), STAGES=STAGES, num_warps=8, **FUSED,
            )  # fmt: skip
    return outputs


match_tokens = matching("triton_match_tokens", _forward, STORAGE, dispatch_keys())
