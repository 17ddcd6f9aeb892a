"""Local against exact matching: cost, time and agreement (`python -m benchmarks windows`).

Agreement needs no trained video model: at every merge of the exact model's forward pass both matchings see the same
metric. What a window does to an accuracy is shown on the one trained model that there is, the digits'.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import schedules
from benchmarks.results import Unit
from rmeeto import MergeConfig
from rmeeto.measure import benchmark, count_flops
from rmeeto.merge import MergePlan, Tokens, TokenState, match
from rmeeto.merge.plan import take_tokens
from rmeeto.nn import block
from rmeeto.ops import match_tokens
from video_task.config import VideoDataConfig
from video_task.data import read_frames
from video_task.data.transforms import ViewTransform
from video_task.throughput import made_up

MODEL = "videomamba_video_tiny_patch16_224"
WINDOWS = ((1, 14, 14), (2, 14, 14), (2, 3, 3), (2, 5, 5), (3, 3, 3))
FRAMES = (8, 16, 32, 64)
DIGITS_R = (8, 12, 16)
DIGITS_WINDOWS = ((1, 2, 2), (1, 3, 3), (1, 4, 4))


def units(device: torch.device, runs: int, quick: bool = False) -> Iterator[Unit]:
    """The four tables."""
    yield Unit("cost", cost, "cost")
    for frames in FRAMES[:1] if quick else FRAMES:
        yield Unit(f"time, {frames} frames", partial(time_by_frames, device, runs, frames), "time")
    yield Unit("agreement", partial(agreement, device), "agreement")
    yield Unit("digits", digits_accuracy, "digits")


def cost() -> Iterator[dict[str, Any]]:
    """Multiply-accumulates of the video models (G), dense, exact and local."""
    for size in ("tiny", "small", "middle"):
        with torch.device("meta"):
            model = timm.create_model(f"videomamba_video_{size}_patch16_224")
        for r in (0, 40, 88):
            for window in (None, *WINDOWS) if r else (None,):
                model.merge_config = MergeConfig(r=r, window=window) if r else None
                counted = {c: count_flops(model, (8, 224, 224), c) for c in ("paper", "full")}
                totals = {c: round(counted[c].total / 1e9, 3) for c in counted}
                matching = round(counted["full"].parts["matching"] / 1e9, 3)
                yield {"model": size, "r": r, "window": window, **totals, "matching": matching}


def time_by_frames(device: torch.device, runs: int, frames: int) -> Iterator[dict[str, Any]]:
    """Milliseconds of one matching of 192 channels and r = 88, of so many frames."""
    grid = (frames, 14, 14)
    metric = torch.randn(1, frames * 196 + 1, 192, device=device)
    ways = {
        "exact, torch": lambda m: match(m, 88, 0),
        "exact, fast path": partial(match_tokens, r=88, tokens=Tokens(frames * 196 + 1, 0)),
    }
    for window in WINDOWS:
        ways[f"window {window}"] = partial(match, r=88, class_index=0, window=window, grid=grid)
    timed = benchmark(ways, metric, runs=runs)
    medians = {name: round(1e3 * timing.median_s, 3) for name, timing in timed.items()}
    yield {"frames": frames, "tokens": metric.shape[1], **medians}


def agreement(device: torch.device) -> Iterator[dict[str, Any]]:
    """What local matching chooses where exact matching has chosen, on a panned photograph and untrained weights."""
    with tempfile.TemporaryDirectory() as folder:
        file = made_up(Path(folder) / "pan.mp4")
        frames = [read_frames(file, range(start, start + 64, 8)) for start in (0, 60, 150, 220)]
    torch.manual_seed(0)
    model = timm.create_model(MODEL).to(device).eval()
    view = ViewTransform(VideoDataConfig(), model.pretrained_cfg["input_size"][-1])
    clips = torch.cat([view(clip) for clip in frames]).to(device)
    for r in (40, 88):
        model.merge_config = MergeConfig(r=r, window=model.patch_embed.grid_size)  # exact, with positions
        with _compared() as found, torch.inference_mode():
            model(clips)
        for window, rows in found.items():
            same, sources, exact, local = np.mean(rows, axis=0).round(3).tolist()
            yield {"r": r, "window": window, "same_pairs": same, "same_sources": sources,
                   "similarity_exact": exact, "similarity_local": local}  # fmt: skip


@contextmanager
def _compared() -> Iterator[dict[tuple[int, int, int], list[tuple[float, ...]]]]:
    """Match locally beside every exact matching of a block."""
    exact, found = block.plan_merge, {window: [] for window in WINDOWS}

    def both(state: TokenState, r: int, config: MergeConfig, grid: Any) -> MergePlan:
        plan, metric = exact(state, r, config, grid), state.hidden
        pairs = _pairs(plan)
        for window, rows in found.items():
            local = match(metric, r, state.class_index, window=window, grid=grid, position=state.cell)
            theirs = _pairs(local)
            same = (pairs.unsqueeze(2) == theirs.unsqueeze(1)).all(-1).any(2).float().mean()
            sources = (pairs[..., 0].unsqueeze(2) == theirs[..., 0].unsqueeze(1)).any(2).float().mean()
            rows.append((same.item(), sources.item(), _similarity(metric, pairs), _similarity(metric, theirs)))
        return plan

    with mock.patch.object(block, "plan_merge", both):
        yield found


def _pairs(plan: MergePlan) -> Tensor:
    """(B, r, 2): source and destination of each merge, by their positions before it."""
    return torch.stack([plan.source, plan.keep.gather(1, plan.destination)], dim=-1)


def _similarity(metric: Tensor, pairs: Tensor) -> float:
    metric = F.normalize(metric.float(), dim=-1)
    a, b = (take_tokens(metric, index) for index in pairs.unbind(-1))
    return (a * b).sum(-1).mean().item()


def digits_accuracy() -> Iterator[dict[str, Any]]:
    """Training-free top-1 of the shipped digits model (64 patches of an image), merged exactly and locally."""
    cpu = torch.device("cpu")
    model, (images, labels) = schedules.trained(cpu), schedules.digits(cpu)
    settings = [None, *(MergeConfig(r=r, window=w) for r in DIGITS_R for w in (None, *DIGITS_WINDOWS))]
    for merge in settings:
        model.merge_config = merge
        top1 = round(schedules.top1(model, images, labels), 2)
        yield {"r": merge.r if merge else 0, "window": merge.window if merge else None, "top1": top1}
