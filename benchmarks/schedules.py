"""The latency-aware schedule against the constant one, at equal measured latency."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import formats, models, timing
from benchmarks.results import Unit
from image_task.config import DataConfig
from image_task.data import build_data
from image_task.models import load_weights
from rmeeto import MergeConfig
from rmeeto.measure import Timing, benchmark, fit_schedule
from rmeeto.measure.least_harm import harm
from rmeeto.merge import merging_blocks
from video_task.config import VideoDataConfig
from video_task.data import build_data as build_clips
from video_task.data.digits import EMBEDDED, write_digits
from video_task.models import load_weights as load_clip_weights

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "image_task" / "exp_sh" / "digits" / "dense.safetensors"
CLIP_WEIGHTS = ROOT / "video_task" / "exp_sh" / "digits" / "dense.safetensors"
MODEL, BATCH = "vim_nano_patch2_16", 64
CLIP_MODEL, CLIP_EDGE = "videomamba_video_nano_patch4_32", 24
# interval: r. On the digits the objective of fitting was chosen; the clips and Fashion-MNIST had no part in that.
CONSTANT = {2: (4, 8, 12, 16, 20), 1: (2, 4, 6, 8, 10)}
CLIP_CONSTANT = {2: (10, 20, 30, 40, 60), 1: (4, 8, 12, 16, 24)}
FASHION_CONSTANT = {1: (5, 8, 11, 15, 20)}
CLOSE, TRIES = 0.01, 4  # a fitted model may be so much slower; until it is not, more is asked of it
RANDOM = 60  # schedules
LARGE, LARGE_BATCH, RATIOS = "vim_tiny_patch16_224", 8, (1.1, 1.2, 1.3)


def units(device: torch.device, runs: int, data: Path, quick: bool = False) -> Iterator[Unit]:
    """How well the harm that fitting makes small orders random schedules; each constant schedule on the digits, on the
    clips of moving digits and on Fashion-MNIST's test images where `data` has them (training-free) beside the fitted
    one that is as fast; how near a fitted full-size model comes to its aim.
    """
    images, labels = digits(device)
    model = trained(device)
    yield Unit("order", partial(_orders, model, images, 5 if quick else RANDOM))
    subjects = [("digits", model, images, labels, CONSTANT)]
    if not quick:
        subjects.append(("clips", *_clips(device), CLIP_CONSTANT))
        if (data / "FashionMNIST").is_dir():
            subjects.append(("Fashion-MNIST", *_fashion(device, data), FASHION_CONSTANT))
        else:
            yield Unit("Fashion-MNIST", partial(_without, data))
    for name, subject, x, labels, constant in subjects:
        for interval, values in constant.items():
            for r in values[-1:] if quick else values:
                what = f"{name}, interval {interval}"
                yield Unit(f"{what}, r {r}", partial(_compare, what, subject, x, labels, interval, r, runs))
    if not quick:
        yield Unit("reached", partial(_reached, device, runs))


def _without(data: Path) -> Iterator[dict[str, Any]]:
    yield {"what": "Fashion-MNIST", "way": "fitted", "skipped": f"it is not in {data}"}


def _orders(model: nn.Module, images: Tensor, count: int) -> Iterator[dict[str, Any]]:
    """Spearman's correlation, over random schedules, of what could be made small with what merging does to logits."""
    generator = random.Random(0)
    twin, depth, blocks = models.merged(model, 0), len(model.layers), merging_blocks(len(model.layers), 1)
    dense = _log_probabilities(model, images)
    found = []
    for _ in range(count):
        left, removed = model.num_tokens[0], []
        for _ in blocks:
            removed.append(min(generator.choice([0, generator.randint(0, 32)]), (left - 1) // 2))
            left -= removed[-1]
        twin.merge_config = MergeConfig(r=tuple(removed), interval=1)
        divergence = F.kl_div(_log_probabilities(twin, images), dense, reduction="batchmean", log_target=True)
        found.append((float(divergence), harm(removed, depth, blocks, model.num_tokens[0]), sum(removed)))
    divergences, *others = zip(*found, strict=True)
    for column, way in zip(others, ("harm", "tokens removed"), strict=True):
        row = {"what": f"rank correlation with KL(dense || merged), {count} random schedules", "way": way}
        yield row | {"correlation": float(spearmanr(divergences, column).statistic)}


@torch.inference_mode()
def _log_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).log_softmax(-1)


def _compare(
    what: str, model: nn.Module, x: Tensor, labels: Tensor, interval: int, r: int, runs: int
) -> Iterator[dict[str, Any]]:
    batch = x[:BATCH]
    constant = models.merged(model, 0)
    constant.merge_config = MergeConfig(r=r, interval=interval)
    ways = {"dense": model, "constant": constant}
    try:
        ways["fitted"] = _as_fast(ways, interval, batch, runs)
    except ValueError as reason:
        yield {"what": what, "way": "fitted", "skipped": str(reason)}
    found = benchmark(ways, batch, runs=runs)  # anew: the fitted one was chosen for its time
    for row, twin in zip(_rows(what, ways, found), ways.values()):
        yield row | {"top1": top1(twin, x, labels)}


def _rows(what: str, ways: dict[str, nn.Module], found: dict[str, Timing]) -> Iterator[dict[str, Any]]:
    for way, twin in ways.items():
        speed_up, spread = timing.ratio(found["dense"].seconds, found[way].seconds)
        merge = twin.merge_config
        row = {"what": what, "way": way, "r": merge.to_dict()["r"] if merge else 0, "tokens": twin.num_tokens}
        yield row | {**timing.times(found[way]), "speed_up": speed_up, "speed_up_spread": spread}


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
        fitted.merge_config = fit_schedule(
            fitted,
            tuple(batch.shape[1:]),
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
        twin.merge_config = fit_schedule(
            dense, x.shape[-1], device, target_ratio=ratio, batch_size=LARGE_BATCH, runs=runs
        )
    found = benchmark(ways, x, runs=runs)
    yield from _rows(LARGE, ways, found)


def trained(device: torch.device) -> nn.Module:
    model = models.create(MODEL, torch.device("cpu"))
    load_weights(model, str(WEIGHTS))
    return model.to(device)


def digits(device: torch.device) -> tuple[Tensor, Tensor]:
    """The embedded test images and their labels."""
    data = build_data(DataConfig(num_workers=0), img_size=16, rank=0, world_size=1, seed=0, train=False)
    images, labels = zip(*data.eval_batches())
    return torch.cat(images).to(device), torch.cat(labels).to(device)


def _clips(device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """The shipped video model, and the validation clips of moving digits with their labels."""
    with TemporaryDirectory() as folder:
        write_digits(folder, **{**EMBEDDED, "num_train": 0})
        config = VideoDataConfig(data_set="folder", data_path=folder, short_side_size=32, num_workers=0)
        data = build_clips(config, img_size=CLIP_EDGE, rank=0, world_size=1, seed=0, train=False)
        clips, labels = (torch.cat(parts) for parts in zip(*data.eval_batches()))
    settings = {"img_size": CLIP_EDGE, "tubelet_size": 2, "num_classes": data.num_classes}
    model = models.create(CLIP_MODEL, torch.device("cpu"), **settings)
    load_clip_weights(model, str(CLIP_WEIGHTS))
    return model.to(device), clips.to(device), labels.to(device)


def _fashion(device: torch.device, data: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """The shipped Vim of the evidence, and the 10,000 test images with their labels."""
    name, weights = formats.TRAINED["FASHION"]
    model = models.create(name, torch.device("cpu"))
    load_weights(model, str(weights))
    config = DataConfig(data_set="FASHION", data_path=str(data), num_workers=0)
    batches = build_data(config, img_size=28, rank=0, world_size=1, seed=0, train=False).eval_batches()
    images, labels = (torch.cat(parts) for parts in zip(*batches))
    return model.to(device), images.to(device), labels.to(device)


@torch.inference_mode()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In percent."""
    answers = torch.cat([model(part).argmax(1) for part in images.split(500)])
    return 100 * float((answers == labels).float().mean())
