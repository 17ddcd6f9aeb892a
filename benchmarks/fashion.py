"""The recipes of the evidence on Fashion-MNIST, three seeds side by side: python -m benchmarks fashion.

Each seed has processes of its own that stay (`rmeeto.cli.warm`). The recipes stand in the order of what they tell, so
that a cut leaves the first of them for all seeds. How long it takes on a GPU is not yet measured: `expected` is made of
runs, steps and images, which a test counts in the recipes, and of what each takes of a core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.results import Unit

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "image_task/exp_sh/fashion"
SEEDS, PROCESSES = (0, 1, 2), 5  # of a seed; with those that load images they fill 16 cores
NUM_RUNS, NUM_STEPS = 244, 28_210  # of a seed: 84 trainings, 160 evaluations
NUM_EAGER = 248  # of the steps: each is three passes, at several r, which no graph holds
# Training images that the processes of a seed make (1.8 M are trained on): the batches of a run stay in the process for
# the next one, and at worst every process makes those of the longest runs.
NUM_MADE = 800_000
# Seconds of a core. Measured on a busy CPU: a run beside its steps in a process that stays (0.35 evaluating, 1.0
# training, where a new one imports for 5), and an image. Assumed: the first imports and kernels, 20 us a launch, 100
# launches beside those in a step's graph, 450 of a pass without one. A GPU that needs more than 1.3 ms a step would be
# what all wait for.
START, RUN, STEP, EAGER, IMAGE = 8.0, 1.0, 100 * 20e-6, 3 * 450 * 20e-6, 0.29e-3
RAW = "FashionMNIST/raw"


def expected() -> float:
    """Seconds of all seeds, where every process has a core."""
    of_a_core = NUM_RUNS * RUN + NUM_STEPS * STEP + NUM_EAGER * EAGER + NUM_MADE * IMAGE
    return START + of_a_core / PROCESSES


def units(quick: bool = False) -> Iterator[Unit]:
    """One, for the seeds run side by side."""
    seeds = SEEDS[: 1 if quick else None]
    yield Unit(f"seeds {', '.join(map(str, seeds))}", partial(rows, seeds, quick))


def rows(seeds: tuple[int, ...], quick: bool = False) -> Iterator[dict[str, Any]]:
    """A row a run that has ended. ``DATA`` holds the images; where there are none, a row says so.

    Quick: the recipes are validated, not run.
    """
    data = Path(os.environ.get("DATA", ROOT / "data"))
    if not quick and not (data / RAW).is_dir():
        yield {"skipped": f"there is no {data / RAW}; let DATA name its folder"}
        return
    runs = Path(os.environ.get("RUNS", ROOT / "runs"))
    began, seen = time.monotonic(), set[Path]()
    processes = {seed: start(seed, data, quick) for seed in seeds}
    ended: set[int] = set()
    while len(ended) < len(processes):
        time.sleep(0.2)
        ending = {seed for seed, process in processes.items() if process.poll() is not None} - ended
        yield from _finished(runs, seeds, seen, began)
        for seed in sorted(ending):
            count = sum(f"-seed{seed}" in file.parent.name for file in seen)
            yield {"seed": seed, "run": "all", "seconds": round(time.monotonic() - began, 1), "runs": count}
        ended |= ending
    codes = {seed: process.returncode for seed, process in processes.items() if process.returncode}
    assert not codes, f"recipes of seeds ended with exit codes {codes}"


def start(seed: int, data: Path, quick: bool) -> subprocess.Popen:
    """The recipes of a seed."""
    environment = os.environ | {"SEED": str(seed), "DATA": str(data), "DRY_RUN": str(int(quick)), "GRAPH": "1"}
    environment |= {"PYTHON": sys.executable, "JOBS": str(PROCESSES)}
    recipe = ["bash", str(RECIPES / ("dense.sh" if quick else "all.sh"))]
    crew = [] if quick else [sys.executable, "-m", "rmeeto.cli.warm", str(PROCESSES)]
    return subprocess.Popen([*crew, *recipe], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def _finished(runs: Path, seeds: tuple[int, ...], seen: set[Path], began: float) -> Iterator[dict[str, Any]]:
    for seed in seeds:
        for file in sorted(set(runs.glob(f"fashion/*-seed{seed}/result.json")) - seen):
            seen.add(file)
            top1 = json.loads(file.read_text()).get("top1")
            yield {"seed": seed, "run": file.parent.name, "top1": top1, "seconds": round(time.monotonic() - began, 1)}
