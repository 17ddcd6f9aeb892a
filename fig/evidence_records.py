"""What the recipes of image_task/exp_sh/fashion/ have recorded, and the intervals of it."""

from __future__ import annotations

import base64
import functools
import json
import math
import re
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from scipy import stats

from exp_sh.collect import record_of
from fig.record import MISSING, ROOT
from image_task.flags import parse
from rmeeto import MergeConfig
from rmeeto.json_file import read_json
from rmeeto.measure import token_reduction_ratio

RECORDS = ROOT / "image_task" / "exp_sh" / "fashion" / "results.json"
RIGHT = RECORDS.with_name("right.json")
MODELS = {"vim": "vim_nano_patch2_28", "deit": "rmeeto_deit_nano_patch2_28"}
ARMS = {"free": "training-free", "brief": "re-trained"}
IMAGES = 10_000  # to test on


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def collect(runs: Path) -> dict[str, Any]:
    """The records of the finished runs below a folder, by their names."""
    found = {}
    for path in sorted((runs / "fashion").glob("*/result.json")):
        result, config, env = (read_json(path.with_name(f"{name}.json")) for name in ("result", "config", "env"))
        if not config["run"]["smoke"]:
            record = record_of(result, config, env)
            found[path.parent.name] = {
                **record,
                "command": shlex.join(record["command"]),
                "seconds": seconds(path.with_name("log.jsonl")),
            }
    return found


def seconds(log: Path) -> float:
    """What a run's training and its evaluations took; of an epoch that was cut short, the part since then."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    took = {
        (line["event"], line["epoch"]): line["process"]["seconds"]
        for line in lines
        if line["event"] != "step" and "process" in line  # a step says its pace
    }
    return round(sum(took.values()), 1)


def packed(right: np.ndarray) -> str:
    """Booleans as text, six to a character."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpacked(text: str) -> np.ndarray:
    """The booleans of `IMAGES` images."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=IMAGES).astype(bool)


class Evidence:
    """What is recorded, by row; a row is (vim or deit, its name, its arm: free, brief, trained or elastic).

    Args:
        records: by run folder.
        right: which test images, `packed`, by run folder, where that is known.
    """

    def __init__(self, records: dict[str, Any], right: dict[str, str] | None = None) -> None:
        self.records, self.right = records, right or {}

    def runs(self, kind: str, name: str, arm: str) -> dict[int, str]:
        """Of a row, evaluated on all test images, by seed."""
        pattern = re.compile(rf"{kind}-{re.escape(name)}-{arm}-test-seed(\d+)")
        if arm == "elastic":
            pattern = re.compile(rf"{kind}-elastic-at-{re.escape(name)}-test-seed(\d+)")
        found = {int(m[1]): run for run in self.records if (m := pattern.fullmatch(run))}
        return {seed: run for seed, run in sorted(found.items()) if self.records[run]["count"] == IMAGES}

    def of_seed(self, seed: int) -> Evidence:
        """What one seed has."""
        return Evidence({run: of for run, of in self.records.items() if run.endswith(f"-seed{seed}")}, self.right)

    def top1(self, kind: str, name: str, arm: str) -> dict[int, float]:
        """Top-1 on the test images in percent, by seed."""
        return {seed: self.records[run]["top1"] for seed, run in self.runs(kind, name, arm).items()}

    def seeds(self, *terms: tuple[float, str, str, str]) -> list[int]:
        """Which all rows of a sum have."""
        return sorted(set.intersection(*(set(self.runs(*row)) for _, *row in terms)))

    def sum(self, *terms: tuple[float, str, str, str]) -> Interval | None:
        """A sum of weighted accuracies over the seeds that all have; None where there is none.

        With one seed the interval is over the test images: of what each adds to the sum, where it is known which each
        term gets right, else binomial with the terms taken as independent (they see the same images, so that of a
        difference is too wide). With more seeds it is Student's, over the seeds.

        Args:
            terms: weight, kind, name, arm.
        """
        values, seeds = [self.top1(*row) for _, *row in terms], self.seeds(*terms)
        if not seeds:
            return None
        sums = [sum(weight * of[seed] for (weight, *_), of in zip(terms, values)) for seed in seeds]
        mean = statistics.mean(sums)
        if len(seeds) > 1:
            half = stats.t.ppf(0.975, len(seeds) - 1) * statistics.stdev(sums) / math.sqrt(len(seeds))
        else:
            half = 1.96 * math.sqrt(self._variance(seeds[0], terms) / IMAGES)
        return Interval(mean, mean - half, mean + half)

    def _variance(self, seed: int, terms: Sequence[tuple[float, str, str, str]]) -> float:
        """Of what a test image adds to a sum of terms, in points squared."""
        runs = [self.runs(*row)[seed] for _, *row in terms]
        if all(run in self.right for run in runs):
            return float(np.var(sum(100 * w * unpacked(self.right[run]) for (w, *_), run in zip(terms, runs))))
        tops = (self.records[run]["top1"] for run in runs)
        return sum(w**2 * top1 * (100 - top1) for (w, *_), top1 in zip(terms, tops))

    def cell(self, kind: str, name: str, arm: str) -> str:
        """A row's accuracy with its interval."""
        found = self.sum((1, kind, name, arm))
        if found is None:
            return MISSING
        seeds = len(self.seeds((1, kind, name, arm)))
        return f"{found.mean:.2f} ± {found.high - found.mean:.2f}" + (f" ({seeds} seeds)" if seeds > 1 else "")

    def removed(self, kind: str, name: str) -> str:
        """The share of tokens that a training-free row removes, by its command."""
        runs = self.runs(kind, name, "free")
        if not runs:
            return MISSING
        config, _, _ = parse(shlex.split(self.records[min(runs.values())]["command"])[2:])
        return f"{removed(config.merge, MODELS[kind]):.3f}"

    def change(self, kind: str, name: str, arm: str, base: str) -> str:
        """The same of the difference to another row."""
        found = self.sum((1, kind, name, arm), (-1, kind, base, arm))
        return "" if found is None else f"{found.mean:+.2f} ± {found.high - found.mean:.2f}"


@functools.cache
def removed(merge: MergeConfig | None, model: str = MODELS["vim"]) -> float:
    """The share of tokens removed, averaged over the blocks: the paper's reduction ratio."""
    with torch.device("meta"):
        return token_reduction_ratio(timm.create_model(model, merge=merge))
