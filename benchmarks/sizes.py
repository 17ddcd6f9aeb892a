"""Larger pictures and longer clips: where linear cost and merging pay, beside a Transformer.

Every row is timed once in every round, one sample at a time, which is how long inputs are met.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import video_task.models  # noqa: F401  (registers the models)
from benchmarks import front_plot, rounds
from benchmarks.results import Unit
from rmeeto import MergeConfig

SHARE = 0.05  # of the tokens: r of each second block, as 11 of 197 are
WINDOWS = {"img_size": (1, 7, 7), "num_frames": (2, 3, 3)}
WAYS = ("dense", "merged", "merged in a window")
# A model, the argument that makes its input longer, its values, and how it merges.
CASES: tuple[tuple[str, str, tuple[int, ...], tuple[str, ...]], ...] = (
    ("vim_tiny_patch16_224", "img_size", (224, 384, 512, 768, 1024), WAYS),
    ("rmeeto_deit_tiny_patch16_224", "img_size", (224, 384, 512, 768, 1024), ("dense", "merged")),
    ("videomamba_video_tiny_patch16_224", "num_frames", (8, 16, 32, 64), WAYS),
)
QUICK: tuple[tuple[str, str, tuple[int, ...], tuple[str, ...]], ...] = (
    ("vim_nano_patch2_16", "img_size", (16, 32), ("dense", "merged")),
    ("videomamba_video_nano_patch4_32", "num_frames", (2, 4), ("dense", "merged in a window")),
)


def units(options: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[Unit]:
    """The runs that the rows lack, round by round."""
    cases = (
        {"model": name, "way": way, "kind": kind, "size": size, "batch": 1}
        for name, kind, sizes, ways in (QUICK if options.quick else CASES)
        for size in sizes
        for way in ways
    )
    least = 0.0 if options.quick else 0.2
    return rounds.units(cases, rows, options.runs, partial(_way, options.device), options.device, least)


def _way(device: torch.device, case: rounds.Case) -> Callable[[], torch.Tensor]:
    model = _model(case["model"], case["kind"], case["size"], device)
    window = WINDOWS[case["kind"]] if case["way"] == WAYS[2] else None
    model.merge_config = None if case["way"] == WAYS[0] else MergeConfig(r=SHARE, window=window)
    return partial(model, torch.randn(1, *model.pretrained_cfg["input_size"], device=device))


@cache
def _model(name: str, kind: str, size: int, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{kind: size}).eval().to(device)


def draw(result: dict[str, Any], path: Path) -> Path:
    """The picture beside the result's file: time against the size of the input.

    Returns:
        Its path.
    """
    from matplotlib.figure import Figure  # not every machine that measures has it

    figure = Figure(figsize=(10, 4), layout="constrained")
    for ax, kind in zip(figure.subplots(1, 2), ("img_size", "num_frames")):
        front_plot.lengths(ax, result["rows"], kind)
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=120)
    return picture
