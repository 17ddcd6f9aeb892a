"""The wall-time table of the method's headline: 3 epochs of Vim-Ti, -S and -B on 1, 2 and 4 machines.

Rows are what the paper reports; what follows for more machines from its figure for one; what was measured by
`bash exp_sh/minutes.sh` on the machines that were there; and what follows from a step and the loader measured here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import loader
from benchmarks.models import Setting, create, images, on
from benchmarks.results import Unit, device_name
from benchmarks.training import Step
from benchmarks.wall_time import (
    BATCH,
    EPOCHS,
    GPUS,
    MACHINES,
    NETWORK,
    NVLINK,
    OVERLAP,
    REPORTED,
    SAMPLES,
    h100s,
    reported_rates,
    work,
)
from rmeeto.measure.scaling import Link, Machines, Rates, predict
from rmeeto.record import Run

ETHERNET = Link(1.0e9, 100e-6)  # assumed, of machines like this one: 10 Gb/s
TIMED = {"cpu": 3, "cuda": 20}


def units(device: torch.device, quick: bool) -> Iterator[Unit]:
    """The table's rows, a model a unit."""
    for name in list(REPORTED)[: 1 if quick else None]:
        yield Unit(name, partial(rows, name, device, quick), "minutes")


def rows(name: str, device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Minutes of a model on 1, 2 and 4 machines, from each source."""
    reported, r, _ = REPORTED[name]
    yield row(name, "reported by the paper", f"{GPUS} H100 each", reported)
    predicted = [predict(reported_rates(name), work(name), h100s(count)).total_s / 60 for count in MACHINES]
    yield row(name, "predicted from its figure for one machine", f"{GPUS} H100 each", predicted)
    found = measured_runs(name)
    if any(found):
        yield row(name, "measured by exp_sh/minutes.sh", "see the run's env.json", found)
    rates = measure(name, r, device, quick)
    here = [predict(rates, work(name), like_this(count, device)).total_s / 60 for count in MACHINES]
    kind = f"{max(1, torch.cuda.device_count())} x {device_name(device)}"
    yield row(name, "predicted from a step and the loader here", kind, here) | {
        "micro_batch": rates.batch,
        "compute_s": rates.compute_s,
        "load_s": rates.load_s,
    }


def row(name: str, source: str, machine: str, minutes: Any) -> dict[str, Any]:
    """A line of the table; None for what is not known."""
    cells = {f"{count}": None if value is None else round(value, 1) for count, value in zip(MACHINES, minutes)}
    return {"model": name, "minutes": source, "machine": machine, **cells}


def like_this(count: int, device: torch.device) -> Machines:
    """Machines like this one: a process a GPU, else one with all cores."""
    cores, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    if device.type == "cuda":
        return Machines(count, gpus, cores, NVLINK, NETWORK, workers=max(1, cores // gpus), overlap=OVERLAP)
    # The process and its loaders share the cores: loading comes on top of computing.
    return Machines(count, 1, cores, ETHERNET, ETHERNET, gathers=True)


def measure(name: str, r: int, device: torch.device, quick: bool) -> Rates:
    """A training step of the recipe and the loader, on this machine."""
    half = device.type == "cuda"
    dtype, batch = (torch.bfloat16, BATCH) if half else (torch.float32, 1 if quick else 4)
    setting = Setting(device, dtype, (r,), ("auto",), 5, 0.05, 5.0, None)
    x = images(create(name, device), batch, device)
    step = on("auto", Step(setting, "auto", name, r, x))
    seconds = []
    for _ in range(2 if quick else TIMED[device.type] + 2):
        began = time.perf_counter()
        step()
        if half:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    took = median(seconds[1 if quick else 2 :])
    of_photos = next(iter(loader.units(device, quick))).rows()
    rate = next(found for found in of_photos if found["way"] == "training")
    return Rates(batch, took, backward_s=took / 2, load_s=1 / rate["images_per_s_core"])


def measured_runs(name: str) -> list[float | None]:
    """Minutes of 3 epochs from the images a second of the runs that exp_sh/minutes.sh left, by number of machines."""
    folder = Path(os.environ.get("RUNS", "runs")) / "minutes"
    found: list[float | None] = []
    for count in MACHINES:
        path = folder / f"{name}-{count}"
        rates = [line["process"]["images_per_s"] for line in Run.read(path).train] if path.exists() else []
        found.append(EPOCHS * SAMPLES / rates[-1] / 60 if rates else None)
    return found
