"""How long a model's blocks and merges take on this device, against the number of tokens."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from rmeeto.merge.config import MergeConfig

Timer = Callable[[Callable[[], Any]], float]
SHARES = (
    0.125,
    0.25,
    0.4,
    0.6,
    0.8,
    1.0,
)  # of the tokens: where times are measured, and interpolated between


@dataclass(frozen=True)
class Latency:
    """Measured times of one batch, in seconds.

    Attributes:
        dense: a forward pass without merging.
        block: (L0 + 1,) one block at each number of tokens; only differences of it mean anything, because it holds its
            share of what is not a block.
        merge: (L0 + 1,) one merge that enters with that many tokens, whatever its r.
        fewest: tokens below which nothing was measured.
    """

    dense: float
    block: Tensor
    merge: Tensor
    fewest: int


def measure_latency(
    model: Any, batch: Tensor, config: MergeConfig, runs: int = 9, timer: Timer | None = None
) -> Latency:
    """Time whole forward passes with all blocks at the same few token counts, and with a merge before every block.

    Whole passes, because a block that is timed alone finds its weights in the cache. The tokens are cut off behind the
    embedding. The passes take turns in every round, and medians over the rounds count; between the token counts times
    are interpolated, and made monotone.

    Args:
        model: with ``layers`` (blocks of one kind, called with a state whose ``cut(n)`` is that of its
            first n tokens), ``num_tokens`` and ``merge_config``; in evaluation mode.
        batch: its input, on its device.
        config: how it merges.
        runs: rounds.
        timer: seconds of a function of no arguments; None for wall-clock time, synchronised.

    Raises:
        ValueError: a model with too few tokens to merge before every block.
    """
    timer = partial(_wall_clock, batch.device) if timer is None else timer
    depth, tokens = len(model.layers), _dense_tokens(model)
    least = 2 * config.neighbour + 1  # for a pair to merge
    counts = sorted({max(least, round(share * tokens)) for share in SHARES})
    merging = [count for count in counts if count - depth >= least]
    if not merging:
        raise ValueError(
            f"fit: {tokens} tokens are too few to time a merge before each of {depth} blocks; "
            f"expected {depth + least} or more"
        )
    one_each = dataclasses.replace(config, r=1, interval=1, odd=False, final_tokens=None)
    passes = [(count, None) for count in counts] + [(count, one_each) for count in merging]
    seconds = _medians(model, batch, passes, runs, timer)

    whole = [seconds[count, None] for count in counts]
    block = _curve(counts, [value / depth for value in whole], tokens)
    merge = []
    for count in merging:  # block i works on count - i tokens
        plain = whole[-1] + sum(float(block[count - i] - block[tokens]) for i in range(depth))
        merge.append(max(0.0, seconds[count, one_each] - plain) / (depth - 1))
    middles = [count - (depth - 2) / 2 for count in merging]  # the mean of what enters its merges
    return Latency(whole[-1], block, _curve(middles, merge, tokens), counts[0])


def _dense_tokens(model: Any) -> int:
    with _configured(model, None):
        return int(model.num_tokens[0])


def _medians(
    model: Any,
    batch: Tensor,
    passes: Sequence[tuple[int, MergeConfig | None]],
    runs: int,
    timer: Timer,
) -> dict[tuple[int, MergeConfig | None], float]:
    """Median seconds of each pass: (tokens behind the embedding, how to merge)."""
    rounds: dict[tuple[int, MergeConfig | None], list[float]] = {key: [] for key in passes}
    with torch.inference_mode():
        for i in range(runs + 1):  # the first warms up
            for count, config in passes:
                with _configured(model, config), _cut(model, count):
                    seconds = timer(lambda: model(batch))
                if i:
                    rounds[count, config].append(seconds)
    return {key: median(values) for key, values in rounds.items()}


@contextmanager
def _configured(model: Any, config: MergeConfig | None) -> Iterator[None]:
    before = model.merge_config
    model.merge_config = config
    try:
        yield
    finally:
        model.merge_config = before


@contextmanager
def _cut(model: Any, tokens: int) -> Iterator[None]:
    def cut(_: nn.Module, arguments: tuple) -> tuple:
        state, *others = arguments
        return state.cut(tokens), *others

    handle = model.layers[0].register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def _wall_clock(device: torch.device, run: Callable[[], Any]) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def _curve(counts: Sequence[float], values: Sequence[float], tokens: int) -> Tensor:
    """Values at 0, 1, ..., ``tokens``: rising, linear between the ``counts`` and flat outside them."""
    x, y = torch.tensor(counts, dtype=torch.float64), torch.tensor(_rising(values), dtype=torch.float64)
    at = torch.arange(tokens + 1, dtype=torch.float64).clamp(x[0], x[-1])
    if len(counts) == 1:
        return y.expand(tokens + 1)
    right = torch.searchsorted(x, at).clamp(1, len(counts) - 1)
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return torch.lerp(y[right - 1], y[right], share)


def _rising(values: Sequence[float]) -> list[float]:
    """The rising sequence nearest to the values in squares: neighbours that fall are replaced by their mean."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and sum(pools[-2]) / len(pools[-2]) > sum(pools[-1]) / len(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return [sum(pool) / len(pool) for pool in pools for _ in pool]
