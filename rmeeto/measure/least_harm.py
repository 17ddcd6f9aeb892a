"""The schedule that does the least harm within a time, by dynamic programming over blocks, tokens and time left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rmeeto.errors import UserError
from rmeeto.measure.latency import Latency

UNITS = 2000  # that the time is divided into; each merge is rounded up by up to two of them
MOST_COUNTS = 256  # token counts that are looked at: longer sequences lose tokens in larger steps


def least_harm(latency: Latency, target: float, depth: int, blocks: Sequence[int]) -> tuple[int, ...]:
    """r of each merging block.

    Merging r tokens, of S that could go, in front of b remaining blocks does the harm ``b^2 sum_{j <= r} (1 + j / S)``.

    Args:
        latency: measured times.
        target: seconds that a forward pass may take.
        depth: blocks of the model.
        blocks: those that merge.

    Raises:
        UserError: no schedule is fast enough.
    """
    tokens = len(latency.block) - 1
    spans = [end - start for start, end in zip(blocks, [*blocks[1:], depth])]
    budget = target - latency.dense + sum(spans) * float(latency.block[tokens])
    fastest = latency.dense - sum(spans) * float(latency.block[tokens]) + _least_time(latency, spans)
    if fastest > target:
        raise UserError(
            f"fit_schedule: a latency of {target * 1e3:.4g} ms ({latency.dense / target:.3g} times as fast) cannot be "
            f"reached: {len(blocks)} merges bring the dense {latency.dense * 1e3:.4g} ms to {fastest * 1e3:.4g} ms "
            f"({latency.dense / fastest:.3g} times); ask for less, or merge more often (interval)"
        )
    if latency.dense <= target:
        return (0,) * len(blocks)

    step = (tokens - 1) // MOST_COUNTS + 1
    counts = torch.arange(tokens, latency.fewest - 1, -step)  # (n,)
    r = counts.unsqueeze(1) - counts
    harms = _harm(r, counts.unsqueeze(1)).double()
    harms.masked_fill_((r < 1) | (r > (counts.unsqueeze(1) - 1) // 2), torch.inf)
    merge_units, plan = _units(latency.merge[counts], budget), []
    least = torch.zeros(len(counts), UNITS + 1, dtype=torch.float64)  # of what follows: (tokens, time left)
    for block, span in zip(reversed(blocks), reversed(spans)):
        block_units = _units(span * latency.block[counts], budget)
        kept = _later(least, block_units)
        best = [((depth - block) ** 2 * row.unsqueeze(1) + kept).min(dim=0) for row in harms]
        merged = _later(torch.stack([found.values for found in best]), merge_units)
        plan.append((torch.stack([found.indices for found in best]), merged < kept, block_units))
        least = torch.minimum(kept, merged)
    return _follow(plan[::-1], counts, merge_units)


def harm(removed: Sequence[int], depth: int, blocks: Sequence[int], tokens: int) -> float:
    """What `least_harm` makes small, of a schedule.

    Args:
        removed: r of each merging block.
        depth: blocks of the model.
        blocks: those that merge.
        tokens: before the first.
    """
    total = 0.0
    for block, r in zip(blocks, removed):
        total += (depth - block) ** 2 * float(_harm(torch.tensor(r), torch.tensor(tokens)))
        tokens -= r
    return total


def _harm(r: Tensor, tokens: Tensor) -> Tensor:
    """Of merges that enter with so many tokens, before they are weighted by the blocks behind them."""
    return r + r * (r + 1) / 2 / ((tokens - 1) // 2)


def _units(seconds: Tensor, budget: float) -> Tensor:
    return torch.ceil(seconds / budget * UNITS).long().clamp_(max=UNITS + 1)


def _later(values: Tensor, units: Tensor) -> Tensor:
    """(n, time left): the values with so much less time left, infinite where there is not so much."""
    left = torch.arange(values.shape[1]) - units.unsqueeze(1)
    return values.gather(1, left.clamp(min=0)).masked_fill_(left < 0, torch.inf)


def _follow(plan: Sequence[tuple[Tensor, Tensor, Tensor]], counts: Tensor, merge_units: Tensor) -> tuple[int, ...]:
    at, left, removed = 0, UNITS, []
    for choice, merges, block_units in plan:
        new = at
        if merges[at, left]:
            left -= int(merge_units[at])
            new = int(choice[at, left])
        removed.append(int(counts[at] - counts[new]))
        at, left = new, left - int(block_units[new])
    return tuple(removed)


def _least_time(latency: Latency, spans: Sequence[int]) -> float:
    """Seconds of the merging blocks and what follows them, when nothing but time counts."""
    counts = torch.arange(latency.fewest, len(latency.block))
    r = counts.unsqueeze(1) - counts
    merge = latency.merge[counts].unsqueeze(1) * (r > 0)
    merge.masked_fill_((r < 0) | (r > (counts.unsqueeze(1) - 1) // 2), torch.inf)
    least = torch.zeros(len(counts), dtype=torch.float64)
    for span in reversed(spans):
        least = (merge + span * latency.block[counts] + least).min(dim=1).values
    return float(least[-1])
