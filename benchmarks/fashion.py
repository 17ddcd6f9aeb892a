"""The recipes of the evidence on Fashion-MNIST, three seeds, many at once: python -m benchmarks fashion.

How long a seed takes on a GPU is not yet measured. `expected` is what its runs and steps, which a test counts in the
recipes, make of two assumptions: a process starts in 6 s (imports, CUDA, kernels from the cache), and a step is bound
by its host, 450 launches of 20 us (7 blocks of a student with 40 each, its teacher with 15 each, loss and optimizer).
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
SEEDS, JOBS = (0, 1, 2), 8
NUM_RUNS, NUM_STEPS = 214, 69_738  # of a seed: 71 trainings, 143 evaluations
START, STEP = 6.0, 450 * 20e-6  # assumed seconds
RAW = "FashionMNIST/raw"


def expected() -> float:
    """Seconds of one seed, `JOBS` runs at a time."""
    return (NUM_RUNS * START + NUM_STEPS * STEP) / JOBS


def units(quick: bool = False) -> Iterator[Unit]:
    """One a seed, so that a cut leaves whole seeds."""
    for seed in SEEDS[: 1 if quick else None]:
        yield Unit(f"seed {seed}", partial(rows, seed, quick))


def rows(seed: int, quick: bool = False) -> Iterator[dict[str, Any]]:
    """A row a run that has ended. ``DATA`` holds the images; where there are none, a row says so.

    Quick: the recipes are validated, not run.
    """
    data = Path(os.environ.get("DATA", ROOT / "data"))
    if not quick and not (data / RAW).is_dir():
        yield {"seed": seed, "skipped": f"there is no {data / RAW}; let DATA name its folder"}
        return
    runs = Path(os.environ.get("RUNS", ROOT / "runs"))
    environment = os.environ | {
        "SEED": str(seed), "JOBS": str(JOBS), "DATA": str(data), "DRY_RUN": str(int(quick)), "PYTHON": sys.executable,
    }  # fmt: skip
    began = time.monotonic()
    recipe = RECIPES / ("dense.sh" if quick else "all.sh")
    process = subprocess.Popen(["bash", str(recipe)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    seen: set[Path] = set()
    while process.poll() is None:
        time.sleep(0.2)
        yield from _finished(runs, seed, seen, began)
    yield from _finished(runs, seed, seen, began)
    assert process.returncode == 0, f"{recipe.name} ended with exit code {process.returncode}"
    yield {"seed": seed, "run": recipe.name, "seconds": round(time.monotonic() - began, 1), "runs": len(seen)}


def _finished(runs: Path, seed: int, seen: set[Path], began: float) -> Iterator[dict[str, Any]]:
    for file in sorted(runs.glob(f"fashion/*-seed{seed}*/result.json")):
        if file not in seen:
            seen.add(file)
            top1 = json.loads(file.read_text()).get("top1")
            yield {
                "seed": seed,
                "run": file.parent.name,
                "top1": top1,
                "seconds": round(time.monotonic() - began, 1),
            }
