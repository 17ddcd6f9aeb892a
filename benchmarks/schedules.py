"""The latency-aware schedule against the constant one, at equal measured latency."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import models, timing
from image_task.config import DataConfig
from image_task.data import build_data
from image_task.models import load_weights
from rmeeto import MergeConfig
from rmeeto.measure import benchmark
from rmeeto.merge.schedule import fit

WEIGHTS = Path(__file__).resolve().parents[1] / "image_task" / "exp_sh" / "digits" / "dense.safetensors"
MODEL, BATCH = "vim_nano_patch2_16", 64
CONSTANT = {2: (4, 8, 12, 16, 20), 1: (2, 4, 6, 8, 10)}  # interval: r
CLOSE, TRIES = 0.01, 4  # a fitted model may be so much slower; until it is not, more is asked of it
LARGE, LARGE_BATCH, RATIOS = "vim_tiny_patch16_224", 8, (1.1, 1.2, 1.3)


def measure(device: torch.device, runs: int, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Rows: each constant schedule on the digits (training-free) beside the fitted one that is as fast; then how near
    a fitted schedule of a full-size model comes to the speed-up that it was asked for.
    """
    images, labels = _digits(device)
    model = _trained(device)
    for interval, values in CONSTANT.items():
        for r in values[-1:] if quick else values:
            yield from _compare(model, images, labels, interval, r, runs)
    if not quick:
        yield from _reached(device, runs)


def _compare(
    model: nn.Module, images: Tensor, labels: Tensor, interval: int, r: int, runs: int
) -> Iterator[dict[str, Any]]:
    batch = images[:BATCH]
    constant = models.merged(model, 0)
    constant.merge_config = MergeConfig(r=r, interval=interval)
    ways = {"dense": model, "constant": constant}
    try:
        ways["fitted"] = _as_fast(ways, interval, batch, runs)
    except ValueError as reason:
        yield {"what": f"digits, interval {interval}", "way": "fitted", "skipped": str(reason)}
    found = benchmark(ways, batch, runs=runs)  # anew: the fitted one was chosen for its time
    for way, twin in ways.items():
        speed_up, spread = timing.ratio(found["dense"].seconds, found[way].seconds)
        merge = twin.merge_config
        row = {"what": f"digits, interval {interval}", "way": way, "r": merge.to_dict()["r"] if merge else 0}
        row |= {"tokens": twin.num_tokens, "top1": _top1(twin, images, labels), **timing.times(found[way])}
        yield row | {"speed_up": speed_up, "speed_up_spread": spread}


def _as_fast(ways: dict[str, nn.Module], interval: int, batch: Tensor, runs: int) -> nn.Module:
    """A model with a fitted schedule that takes no longer than the constant one.

    Raises:
        ValueError: no schedule is predicted to be as fast.
    """
    fitted = models.merged(ways["dense"], 0)
    found = benchmark(ways, batch, runs=runs)
    ratio = found["dense"].median_s / found["constant"].median_s
    for _ in range(TRIES):
        fitted.merge_config = MergeConfig(interval=interval)
        fitted.merge_config = fit(
            fitted,
            batch.shape[-1],
            batch.device,
            target_ratio=max(1.0, ratio),
            batch_size=len(batch),
            runs=runs,
        )
        found = benchmark({**ways, "fitted": fitted}, batch, runs=runs)
        excess = found["fitted"].median_s / found["constant"].median_s
        if excess <= 1 + CLOSE:
            break
        ratio *= excess
    return fitted


def _reached(device: torch.device, runs: int) -> Iterator[dict[str, Any]]:

    dense = models.create(LARGE, device)
    x = models.images(dense, LARGE_BATCH, device)
    ways = {"dense": dense}
    for ratio in RATIOS:
        ways[f"fitted to {ratio}"] = twin = models.merged(dense, 0)
        twin.merge_config = fit(
            dense, x.shape[-1], device, target_ratio=ratio, batch_size=LARGE_BATCH, runs=runs
        )
    found = benchmark(ways, x, runs=runs)
    for way, twin in ways.items():
        speed_up, spread = timing.ratio(found["dense"].seconds, found[way].seconds)
        merge = twin.merge_config
        row = {
            "what": LARGE,
            "way": way,
            "r": merge.to_dict()["r"] if merge else 0,
            "tokens": twin.num_tokens,
        }
        yield row | {**timing.times(found[way]), "speed_up": speed_up, "speed_up_spread": spread}


def _trained(device: torch.device) -> nn.Module:

    model = models.create(MODEL, torch.device("cpu"))
    load_weights(model, str(WEIGHTS))
    return model.to(device)


def _digits(device: torch.device) -> tuple[Tensor, Tensor]:
    """The embedded test images and their labels."""

    data = build_data(DataConfig(num_workers=0), img_size=16, rank=0, world_size=1, seed=0, train=False)
    images, labels = zip(*data.eval_batches())
    return torch.cat(images).to(device), torch.cat(labels).to(device)


@torch.inference_mode()
def _top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 * float((model(images).argmax(1) == labels).float().mean())
