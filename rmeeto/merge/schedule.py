"""Which blocks merge, and how many tokens each removes. Plain integers: shapes stay static."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from rmeeto.merge.config import MergeConfig
from rmeeto.merge.latency import Timer, measure_latency
from rmeeto.merge.least_harm import least_harm


def merging_blocks(depth: int, interval: int = 2, odd: bool = False) -> list[int]:
    """Indices of the blocks that start with a merge: ``i > 0`` and ``i % interval == 0`` (odd: ``(i + 1) %``)."""
    return [i for i in range(1, depth) if (i + odd) % interval == 0]


def clamp_r(r: int, num_tokens: int, protected: bool = True, *, prefix: int | None = None) -> int:
    """Tokens that a merge asked for ``r`` really removes.

    Args:
        r: tokens asked for; 0 or less removes none.
        num_tokens: tokens before the merge, the class token counted.
        protected: whether one of them is a class token, which never merges.
        prefix: in a Transformer, how many tokens never merge; then no token is set aside.
    """
    if prefix is not None:
        return max(0, min(r, (num_tokens - prefix) // 2))
    if num_tokens < 3:  # one token is always set aside: there is no pair to merge
        return 0
    return max(0, min(r, (num_tokens - 1) // 2 if protected else num_tokens // 2))


def removals_asked(config: MergeConfig, num_merges: int) -> list[int]:
    """r of each merge before clamping.

    Raises:
        ValueError: a list in ``config.r`` whose length is not the number of merging blocks.
    """
    if isinstance(config.r, int):
        return [config.r] * num_merges
    if config.inflection is not None:
        return _inflected(int(config.r[0]), config.inflection, num_merges)
    if len(config.r) != num_merges:
        raise ValueError(
            f"MergeConfig: r lists {len(config.r)} values, but {num_merges} blocks merge "
            f"(interval={config.interval}, odd={config.odd}); give one per merging block"
        )
    return [int(value) for value in config.r]


def _inflected(r: int, inflection: float, num_merges: int) -> list[int]:
    if num_merges < 2:
        return [r] * num_merges
    totals, total = [0], 0.0
    for i in range(num_merges):
        total += r * (1 + inflection * (2 * i / (num_merges - 1) - 1))
        totals.append(round(total))  # rounding the running total keeps the sum at r * num_merges
    return [after - before for before, after in zip(totals, totals[1:], strict=False)]


def removals(
    config: MergeConfig | None,
    depth: int,
    num_tokens: int,
    protected: bool = True,
    *,
    prefix: int | None = None,
) -> list[int]:
    """Tokens that each block really removes (before it mixes; in a Transformer after its attention).

    Args:
        config: settings, or None for the dense model.
        depth: number of blocks.
        num_tokens: tokens entering block 0, the class token counted.
        protected: whether one token is a class token.
        prefix: in a Transformer, where every block merges, how many tokens never merge.
    """
    counts = [0] * depth
    if config is None:
        return counts
    blocks = range(depth) if prefix is not None else merging_blocks(depth, config.interval, config.odd)
    for block, r in zip(blocks, removals_asked(config, len(blocks)), strict=True):
        if block == blocks[-1] and config.final_tokens is not None:
            r = num_tokens - config.final_tokens
        counts[block] = clamp_r(r, num_tokens, protected, prefix=prefix)
        num_tokens -= counts[block]
    return counts


def token_counts(
    config: MergeConfig | None,
    depth: int,
    num_tokens: int,
    protected: bool = True,
    *,
    prefix: int | None = None,
) -> list[int]:
    """Number of tokens that each block's mixer (attention) sees, class token counted. Arguments as in `removals`."""
    removed = removals(config, depth, num_tokens, protected, prefix=prefix)
    if prefix is not None:  # a Transformer's block merges after its attention
        removed = [0, *removed[:-1]]
    return [num_tokens - sum(removed[: block + 1]) for block in range(depth)]


def check_neighbour(
    name: str, config: MergeConfig, depth: int, num_tokens: int, *, prefix: int | None = None
) -> None:
    """Refuse a ``config.neighbour`` that a merge of the model ``name`` has too few destinations for.

    Args:
        name: of the model, for the error.
        config, depth, num_tokens, prefix: as in `removals`.

    Raises:
        ValueError: too few destinations.
    """
    for removed in removals(config, depth, num_tokens, prefix=prefix):
        available = (num_tokens - 1) // 2 if prefix is None else num_tokens // 2 - prefix // 2
        if removed and config.neighbour > available:
            raise ValueError(
                f"{name}: neighbour={config.neighbour}, but a merge of {num_tokens} tokens has only {available} "
                "destinations; use a smaller neighbour or a smaller r"
            )
        num_tokens -= removed


def fit(
    model: Any,
    input_size: int | Sequence[int],
    device: str | torch.device,
    *,
    target_ratio: float | None = None,
    target_latency: float | None = None,
    batch_size: int = 8,
    runs: int = 9,
    timer: Timer | None = None,
) -> MergeConfig:
    """Choose r of each merging block so that the model is fast enough on this device, at the least harm.

    Times of a block and of a merge are measured against the number of tokens (`measure_latency`). Of the schedules
    whose predicted latency reaches the target, the one of least harm is taken (`least_harm`): merging r tokens, of S
    that could go, in front of b remaining blocks is taken to do the harm ``b^2 * sum_{j <= r} (1 + j / S)``, because
    every block passes an error on and adds its own, and the j-th best pair is less alike than the one before. Fewest
    tokens removed would be another aim, and a bad one: it merges all it can before the first blocks.

    Args:
        model: a Vision Mamba on ``device``, in evaluation mode; times do not depend on its weights. It merges as its
            ``merge_config`` says (metric, interval, ...; None: the defaults) in all but r.
        input_size: side of the image in pixels, (H, W), or the shape of one sample: (3, H, W), (3, T, H, W).
        device: where times are measured.
        target_ratio: speed-up over the dense model: 1.25 for four fifths of its latency.
        target_latency: seconds of a forward pass of a batch. Give this or ``target_ratio``.
        batch_size: samples in a batch.
        runs: rounds of measuring.
        timer: seconds of a function of no arguments, in place of wall-clock time (of a captured graph, of a test's
            clock). An autocast context around `fit` holds in it.

    Returns:
        The model's merge configuration with one r a merging block: plain integers, so that shapes stay static. The
        model is left as it was.

    Raises:
        ValueError: no or two targets, one that cannot be reached, no runs, or a model that cannot be measured or
            whose blocks never merge.

    Example:
        >>> model.merge_config = fit(model, 224, "cpu", target_ratio=1.3)
    """
    if (target_ratio is None) == (target_latency is None):
        raise ValueError(f"fit: {target_ratio=}, {target_latency=}; give one of the two")
    if target_ratio is not None and not 1 <= target_ratio < float("inf"):
        raise ValueError(f"fit: {target_ratio=}; expected a speed-up over the dense model, 1 or more")
    if target_latency is not None and not 0 < target_latency < float("inf"):
        raise ValueError(f"fit: {target_latency=}; expected seconds, more than 0")
    if runs < 1:
        raise ValueError(f"fit: {runs=}; expected 1 or more rounds of measuring")
    config, depth = _check_measurable(model, torch.device(device)), len(model.layers)
    blocks = merging_blocks(depth, config.interval, config.odd)
    if not blocks:
        raise ValueError(
            f"fit: none of {depth} blocks merges with interval={config.interval}, odd={config.odd}; expected a "
            "model of 2 blocks or more, and an interval that reaches one after the first"
        )
    size = (3, input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    batch = torch.randn(batch_size, *((3, *size) if len(size) == 2 else size), device=device)
    latency = measure_latency(model, batch, config, runs, timer)
    target = target_latency if target_ratio is None else latency.dense / target_ratio
    assert target is not None
    r = least_harm(latency, target, depth, blocks)
    return dataclasses.replace(config, r=r)


def _check_measurable(model: Any, device: torch.device) -> MergeConfig:
    if not all(hasattr(model, name) for name in ("layers", "num_tokens", "merge_config")):
        raise ValueError(f"fit: got a {type(model).__name__}; expected a Vision Mamba of this package")
    if model.training:
        raise ValueError("fit: the model is in training mode; call .eval() on it first")
    found = next(model.parameters()).device
    if found.type != device.type:
        raise ValueError(f"fit: the model is on {found}, device={device}; move one of them")
    config = model.merge_config or MergeConfig()
    if config.final_tokens is not None:
        raise ValueError(
            f"fit: final_tokens={config.final_tokens} fixes the last merge, which fit is to choose; leave it out"
        )
    return config
