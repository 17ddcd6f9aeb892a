"""How long a model's blocks and merges take on this device, against the number of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.measure.speed import seconds_of
from rmeeto.measure.without_merging import first_tokens
from rmeeto.merge import MergeConfig

Timer = Callable[[Callable[[], Any]], float]
# Of the tokens: where times are measured, and interpolated between.
SHARES = (0.125, 0.25, 0.4, 0.6, 0.8, 1.0)


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
        model: with ``layers`` (blocks of one kind, called with a `TokenState`), ``num_tokens`` and ``merge_config``; in
            evaluation mode.
        batch: its input, on its device.
        config: how it merges.
        runs: rounds.
        timer: seconds of a function of no arguments; None for wall-clock time, synchronised.

    Raises:
        UserError: a model with too few tokens to merge before every block.
    """
    timer = partial(seconds_of, batch.device) if timer is None else timer
    depth, tokens = len(model.layers), _dense_tokens(model)
    least = 2 * config.neighbour + 1  # for a pair to merge
    counts = sorted({max(least, round(share * tokens)) for share in SHARES})
    merging = [count for count in counts if count - depth >= least]
    if not merging:
        raise UserError(
            f"fit_schedule: {tokens} tokens are too few to time a merge before each of {depth} blocks; "
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
        return first_tokens(state, tokens), *others

    handle = model.layers[0].register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def _curve(counts: Sequence[float], values: Sequence[float], tokens: int) -> Tensor:
    """Values at 0, 1, ..., ``tokens``: rising, linear between the ``counts`` and flat outside them."""
    from sklearn.isotonic import isotonic_regression  # which takes a second to import

    rising = isotonic_regression(np.asarray(values, dtype=np.float64))
    return torch.from_numpy(np.interp(np.arange(tokens + 1), counts, rising))
