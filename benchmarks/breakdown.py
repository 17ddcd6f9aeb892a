"""Where the time of a merged model's forward pass goes on a CPU, by kind of operator and r, from torch's profiler."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import models
from benchmarks.results import Unit
from rmeeto.measure import count_flops

MODEL, QUICK_MODEL, BATCH = "vim_tiny_patch16_224", "vim_nano_patch2_16", 8
R = (0, 5, 8, 11, 15, 20)
KINDS = {
    "matching": ("rmeeto::match_tokens",),
    "gather": ("rmeeto::merge_tokens",),
    "norm": ("rmeeto::add_rms_norm",),
    "products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "convolutions": ("rmeeto::conv1d", "aten::mkldnn_convolution"),
    "scan": ("rmeeto::scan",),
}


def units(runs: int, quick: bool = False) -> Iterator[Unit]:
    """One unit: a row for each r, profiled in turn."""
    yield Unit("breakdown", partial(rows, QUICK_MODEL if quick else MODEL, runs), "milliseconds")


def rows(name: str, runs: int) -> Iterator[dict[str, Any]]:
    """Medians over the runs of each kind's milliseconds, of what is left, and of the whole."""
    cpu = torch.device("cpu")
    dense = models.create(name, cpu)
    x = models.images(dense, BATCH, cpu)
    each = {r: models.merged(dense, r) for r in R}
    found: dict[int, list[dict[str, float]]] = {r: [] for r in R}
    for i in range(runs + 1):  # the first warms up
        for r, model in each.items():
            times = _profiled(model, x)
            if i:
                found[r].append(times)
    macs = {r: count_flops(model, tuple(x.shape[1:]), "full").total for r, model in each.items()}
    for r in R:
        times = {kind: median(run[kind] for run in found[r]) for kind in found[r][0]}
        theory = {"theory": macs[0] / macs[r]}
        ratios = [dense["whole"] / run["whole"] for dense, run in zip(found[0], found[r])]
        yield {"what": f"{name}, batch {BATCH}", "r": r, **times, "speed_up": median(ratios), **theory}


@torch.inference_mode()
def _profiled(model: torch.nn.Module, x: torch.Tensor) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        model(x)
    own = {event.key: event.self_cpu_time_total / 1e3 for event in seen.key_averages()}
    times = {kind: sum(own.get(key, 0.0) for key in keys) for kind, keys in KINDS.items()}
    whole = sum(own.values())
    return {**times, "rest": whole - sum(times.values()), "whole": whole}
