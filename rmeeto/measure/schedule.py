"""The schedule that makes a model fast enough on this device, at the least harm."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from rmeeto.errors import UserError
from rmeeto.measure.latency import Timer, measure_latency
from rmeeto.measure.least_harm import least_harm
from rmeeto.merge import MergeConfig, merging_blocks


def fit_schedule(
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
            clock). An autocast context around `fit_schedule` holds in it.

    Returns:
        The model's merge configuration with one r a merging block: plain integers, so that shapes stay static. The
        model is left as it was.

    Raises:
        UserError: no or two targets, one that cannot be reached, no runs, or a model that cannot be measured or
            whose blocks never merge.

    Example:
        >>> model.merge_config = fit_schedule(model, 224, "cpu", target_ratio=1.3)
    """
    if (target_ratio is None) == (target_latency is None):
        raise UserError(f"fit_schedule: {target_ratio=}, {target_latency=}; give one of the two")
    if target_ratio is not None and not 1 <= target_ratio < float("inf"):
        raise UserError(f"fit_schedule: {target_ratio=}; expected a speed-up over the dense model, 1 or more")
    if target_latency is not None and not 0 < target_latency < float("inf"):
        raise UserError(f"fit_schedule: {target_latency=}; expected seconds, more than 0")
    if runs < 1:
        raise UserError(f"fit_schedule: {runs=}; expected 1 or more rounds of measuring")
    config, depth = _check_measurable(model, torch.device(device)), len(model.layers)
    blocks = merging_blocks(depth, config.interval, config.odd)
    if not blocks:
        raise UserError(
            f"fit_schedule: none of {depth} blocks merges with interval={config.interval}, odd={config.odd}; expected "
            "a model of 2 blocks or more, and an interval that reaches one after the first"
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
        raise UserError(f"fit_schedule: got a {type(model).__name__}; expected a Vision Mamba of this package")
    if model.training:
        raise UserError("fit_schedule: the model is in training mode; call .eval() on it first")
    found = next(model.parameters()).device
    if found.type != device.type:
        raise UserError(f"fit_schedule: the model is on {found}, device={device}; move one of them")
    config = model.merge_config or MergeConfig()
    if config.final_tokens is not None:
        raise UserError(f"fit_schedule: final_tokens={config.final_tokens} fixes the last merge, too; leave it out")
    return config
