"""Accuracy against latency: dense and merged models beside what a user would take from timm instead.

Every model is timed once in every round, so that what slows the machine slows all; a row grows by one run a round, and
a command that goes on starts with what the rows lack. Weights are random, which changes no time; accuracies are those
that the models' authors report for the settings that they trained, not measured here.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from benchmarks import models
from benchmarks.parity import agree
from benchmarks.results import Unit
from image_task.models import MODELS
from rmeeto.measure.speed import seconds_of

R = (0, 5, 8, 11, 15, 20)
BATCHES = (1, 8)
OURS = ("vim_tiny", "vim_small", "vim_base", "videomamba_tiny", "videomamba_small", "deit_tiny", "deit_small")
OTHERS = ("deit3_small_patch16_224", "levit_conv_256", "repvit_m1_1", "hgnetv2_b2",
          "efficientvim_m1", "efficientvim_m2", "efficientvim_m3", "efficientvim_m4")  # fmt: skip
DEFAULT = (*OURS, *OTHERS)
# Top-1 on ImageNet-1K as reported, by r: of ours by the paper (dense, re-trained), of others in timm's result tables.
REPORTED: dict[str, dict[int, float]] = {
    "vim_tiny_patch16_224": {0: 76.1, 5: 75.3},
    "vim_small_patch16_224": {0: 80.5, 11: 79.9},
    "vim_base_patch16_224": {0: 81.9, 11: 81.3},
    "videomamba_tiny_patch16_224": {0: 76.9, 5: 75.9},
    "videomamba_small_patch16_224": {0: 81.2, 11: 80.1},
    "rmeeto_deit_tiny_patch16_224": {0: 72.2},
    "rmeeto_deit_small_patch16_224": {0: 79.8},
    "deit3_small_patch16_224": {0: 81.4},
    "levit_conv_256": {0: 81.5},
    "repvit_m1_1": {0: 81.3},
}


def units(options: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[Unit]:
    """The runs that the rows lack, round by round."""
    found = {(row["model"], row["r"], row["batch"]): row for row in rows}
    keys = []
    for name, batch in product(options.models, options.batch):
        keys += [(name, r, batch) for r in (options.r if name in MODELS else [0])]
    for i in range(options.runs):
        start = i % len(keys)  # no model is always timed behind the same other
        for name, r, batch in keys[start:] + keys[:start]:
            row = found.setdefault((name, r, batch), {"model": name, "batch": batch, "r": r, "runs_ms": []})
            if len(row["runs_ms"]) <= i:
                yield Unit(None, partial(_run, row, options.device, 0.0 if options.quick else 0.2))


def _run(row: dict[str, Any], device: torch.device, min_seconds: float) -> Iterator[dict[str, Any]]:
    """The row with another run: warm, and as many passes as last so long."""
    model = _model(row["model"], row["r"], device)
    x = models.images(model, row["batch"], device)
    with torch.inference_mode():
        model(x)
        calls = max(1, math.ceil(min_seconds / seconds_of(device, lambda: model(x))))
        row["runs_ms"].append(round(1e3 * seconds_of(device, lambda: model(x), calls), 4))
    first, median, third = np.percentile(row["runs_ms"], (25, 50, 75)).tolist()
    row |= {"median_ms": median, "spread_ms": third - first, "quartiles_ms": [first, third]}
    row |= {"images_per_s": 1e3 * row["batch"] / median}
    row["reported_top1"] = REPORTED.get(row["model"], {}).get(row["r"])
    yield row


@cache
def _model(name: str, r: int, device: torch.device) -> torch.nn.Module:
    """The model merged; one of ours agrees with the eager loop's path.

    Raises:
        Refused: it does not.
    """
    if name not in MODELS:
        return timm.create_model(name).eval().to(device)
    if r:
        return _verified(models.merged(_model(name, 0, device), r), device)
    return _verified(models.create(name, device), device)


@torch.inference_mode()
def _verified(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    few = models.images(model, 1, device)
    agree("logits", model(few), models.on(models.REFERENCE, model)(few), models.TOLERANCE)
    return model


def draw(result: dict[str, Any], path: Path) -> Path:
    """The picture beside the result's file: reported accuracy against latency, and what merging saves.

    Returns:
        Its path.
    """
    from matplotlib.figure import Figure  # not every machine that measures has it

    rows = result["rows"]
    batches = sorted({row["batch"] for row in rows})
    figure = Figure(figsize=(5 * len(batches), 7.5), layout="constrained")
    for (above, below), batch in zip(figure.subplots(2, len(batches), squeeze=False).T, batches):
        for model in dict.fromkeys(row["model"] for row in rows):
            mine = sorted(
                (row for row in rows if (row["model"], row["batch"]) == (model, batch)),
                key=lambda row: row["r"],
            )
            known = [row for row in mine if row["reported_top1"] is not None]
            label, ours = model.partition("_patch")[0].removeprefix("rmeeto_"), model in MODELS
            if known:
                low, high = zip(*(row["quartiles_ms"] for row in known))
                middle = np.array([row["median_ms"] for row in known])
                spread = (middle - low, np.array(high) - middle)
                top1 = [row["reported_top1"] for row in known]
                above.errorbar(
                    middle, top1, xerr=spread, fmt="o-" if ours else "s", mfc=None if ours else "none"
                )
                above.annotate(
                    label, (middle[0], top1[0]), fontsize=7, xytext=(3, 3), textcoords="offset points"
                )
            if len(mine) > 1:
                below.plot([row["r"] for row in mine], [mine[0]["median_ms"] / row["median_ms"] for row in mine], "o-",
                           label=label)  # fmt: skip
        above.set(title=f"batch {batch}", xlabel="ms a batch", ylabel="top-1 as reported (%)", xscale="log")
        below.set(xlabel="r", ylabel="times faster than dense")
        below.legend(fontsize=7)
        for ax in (above, below):
            ax.grid(alpha=0.3)
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=120)
    return picture
