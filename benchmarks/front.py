"""Accuracy against latency: dense and merged models beside what a user would take from timm instead.

Every model is timed once in every round. Weights are random, which changes no time; accuracies are those that the
models' authors report for the settings that they trained, not measured here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks import front_plot, labels, models, rounds
from benchmarks.parity import agree
from benchmarks.results import Unit
from image_task.models import MODELS

R = (0, 5, 8, 11, 15, 20)
BATCHES = (1, 8)
MODES = ("eager", "compiled")
OURS = ("vim_tiny", "vim_small", "vim_base", "videomamba_tiny", "videomamba_small", "deit_tiny", "deit_small")
OTHERS = ("deit3_small_patch16_224", "levit_conv_256", "repvit_m1_1", "hgnetv2_b2",
          "efficientvim_m1", "efficientvim_m2", "efficientvim_m3", "efficientvim_m4")  # fmt: skip
DEFAULT = (*OURS, *OTHERS)
# What of the default is also compiled, half a minute each: these models at these r.
COMPILED = ("vim_tiny_patch16_224", "vim_small_patch16_224", "rmeeto_deit_small_patch16_224", *OTHERS[:3])
COMPILED_R = (0, 11)
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
    way = partial(_way, options.device)
    return rounds.units(cases(options), rows, options.runs, way, options.device, 0.0 if options.quick else 0.2)


def cases(options: argparse.Namespace) -> Iterator[rounds.Case]:
    """What is measured: ours at each r; compiled, of more models than those of `COMPILED`, only these, and few r."""
    few = set(COMPILED) & set(options.models) if len(options.models) > len(COMPILED) else set(options.models)
    for mode, batch, name in product(options.modes, options.batch, options.models):
        for r in options.r if name in MODELS else [0]:
            if mode == "eager" or (name in few and r in COMPILED_R):
                top1 = REPORTED.get(name, {}).get(r)
                yield {"model": name, "batch": batch, "mode": mode, "r": r, "reported_top1": top1}


def _way(device: torch.device, case: rounds.Case) -> Callable[[], torch.Tensor]:
    model = _model(case["model"], case["r"], device)
    x = models.images(model, case["batch"], device)
    if case["mode"] == "eager":
        return partial(model, x)
    return partial(_compiled(case["model"], case["r"], case["batch"], device), x)


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


@cache
@torch.inference_mode()
def _compiled(name: str, r: int, batch: int, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model compiled for a size of the batch; it agrees with the model.

    Raises:
        Refused: it does not.
    """
    model = _model(name, r, device)
    x, compiled = models.images(model, batch, device), models.in_one_graph(model)
    agree("compiled logits", compiled(x), model(x), models.TOLERANCE)
    return compiled


def draw(result: dict[str, Any], path: Path) -> Path:
    """The picture beside the result's file: reported accuracy against latency, and what merging saves.

    Returns:
        Its path.
    """
    from matplotlib.figure import Figure  # not every machine that measures has it

    batches = sorted({row["batch"] for row in result["rows"]})
    figure = Figure(figsize=(5 * len(batches), 7.5), layout="constrained")
    axes = figure.subplots(2, len(batches), squeeze=False)
    for (above, below), batch in zip(axes.T, batches):
        front_plot.accuracy(above, result["rows"], batch)
        front_plot.savings(below, result["rows"], batch)
    for above in axes[0]:
        labels.place(above)
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=120)
    return picture
