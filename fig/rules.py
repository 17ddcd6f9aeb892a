"""The rules compared: `python fig/rules.py` draws docs/rules.png and writes the table of docs/rules.md from records.

`--collect runs` first takes what image_task/exp_sh/digits/rules.sh and video_task/exp_sh/digits/rules.sh have finished
into the records; `--time` first measures one merge by each rule.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from exp_sh.collect import collect  # noqa: E402
from fig.record import MISSING, between, save  # noqa: E402
from rmeeto import MergeConfig  # noqa: E402
from rmeeto.engine.dist import World  # noqa: E402
from rmeeto.engine.record import environment  # noqa: E402
from rmeeto.json_file import read_json, write_json  # noqa: E402
from rmeeto.measure import benchmark  # noqa: E402
from rmeeto.merge import SSMFeatures, TokenState  # noqa: E402
from rmeeto.merge.tokens import grid_cells  # noqa: E402
from rmeeto.nn.block import merge_state  # noqa: E402

NAMES = ("exact", "adjacent", "window", "energy", "importance", "shift", "random")
SEEDS = (0, 1, 2)
ARMS = {"training_free": "training-free", "retrained": "re-trained"}
STUDENT = 4.303  # 97.5 % quantile of Student's t with two degrees of freedom
BEGIN, END = "<!-- table: written by fig/rules.py -->", "<!-- end of table -->"
DOCUMENT, PICTURE, TIMES = (
    ROOT / "docs" / "rules.md",
    ROOT / "docs" / "rules.png",
    ROOT / "fig" / "rules_time.json",
)


@dataclass(frozen=True)
class Task:
    """One of the two comparisons of accuracy."""

    name: str
    folder: Path
    table: str

    def top1(self, rule: str, arm: str) -> dict[int, float]:
        """Recorded top-1 by seed; `exact` may be the re-training recipe's, on the same dense model."""
        records = self.records()
        names = {seed: f"{rule}-{arm}-seed{seed}" for seed in SEEDS}
        found = {seed: records[name]["top1"] for seed, name in names.items() if name in records}
        if rule == "exact":
            runs = {seed: self.folder / "results" / f"{arm}-seed{seed}" / "result.json" for seed in SEEDS}
            found = {seed: read_json(path)["top1"] for seed, path in runs.items()} | found
        return found

    def records(self) -> dict[str, Any]:
        path = self.folder / "results" / "rules.json"
        return read_json(path) if path.exists() else {}


TASKS = (
    Task("digits", ROOT / "image_task" / "exp_sh" / "digits", "rules"),
    Task("clips", ROOT / "video_task" / "exp_sh" / "digits", "rules-video"),
)


@dataclass(frozen=True)
class Size:
    """A merge to be timed: tokens of 192 channels, class token and grid as in the paper's models."""

    tokens: int
    class_index: int
    grid: tuple[int, int, int]
    r: int
    window: tuple[int, int, int]

    def __str__(self) -> str:
        return f"(8, {self.tokens}, 192)"


SIZES = (Size(197, 98, (1, 14, 14), 11, (1, 3, 3)), Size(1569, 0, (8, 14, 14), 88, (2, 3, 3)))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", type=Path, metavar="RUNS", help="the folder of finished runs")
    parser.add_argument("--time", action="store_true", help="measure one merge by each rule on this machine")
    args = parser.parse_args(argv)
    if args.collect:
        take_in(args.collect)
    if args.time:
        write_json(TIMES, measure())
    DOCUMENT.write_text(renewed(DOCUMENT.read_text()))
    draw()
    return 0


def take_in(runs: Path) -> None:
    """Add finished runs to the records."""
    for task in TASKS:
        found, skipped = collect([runs / task.table])
        added = {
            name.partition("/")[2]: {**record, "command": shlex.join(record["command"])}
            for name, record in found.items()
        }
        print(
            f"{task.name}: {len(added)} runs",
            *(f"skipped {path}: {why}" for path, why in skipped.items()),
            sep="\n",
        )
        if added:
            ordered = dict(sorted({**task.records(), **added}.items()))
            write_json(task.folder / "results" / "rules.json", ordered)


def measure(runs: int = 7) -> dict[str, Any]:
    """Milliseconds of one merge as a block does it: matching, and averaging hidden states, residual and sizes."""
    result = {
        **environment(World(torch.device("cpu"))),
        "dtype": "fp32",
        "load_average": os.getloadavg(),
        "sizes": {},
    }
    for size in SIZES:
        timed = benchmark({name: one_merge(size, name) for name in NAMES}, torch.empty(1), runs=runs)
        values = {name: timing.to_dict() for name, timing in timed.items()}
        result["sizes"][str(size)] = {
            "r": size.r,
            **{name: {key: round(v[key], 3) for key in ("latency_ms", "spread_ms")} for name, v in values.items()},
        }
    return result


def one_merge(size: Size, rule: str) -> Callable[[Any], TokenState]:
    """A block's merge of what is drawn at random, the same for every rule."""
    config = MergeConfig(r=size.r, rule=rule, window=size.window if rule == "window" else None)
    generator = torch.Generator().manual_seed(0)
    hidden, residual, inner = (torch.randn(8, size.tokens, c, generator=generator) for c in (192, 192, 384))
    cell = grid_cells(size.tokens, size.class_index).expand(8, -1) if rule == "window" else None
    ssm = SSMFeatures(hidden[..., :16], hidden[..., 16:32], inner)
    state = TokenState(hidden, residual, torch.ones(8, size.tokens, 1), size.class_index, ssm, cell=cell)
    return lambda _: merge_state(state, size.r, config, nn.Identity(), size.grid)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of three values and half the width of its 95 % interval."""
    return statistics.mean(values), STUDENT * statistics.stdev(values) / len(values) ** 0.5


def accuracy_cell(task: Task, rule: str, arm: str) -> str:
    """Mean and interval, and the same of the difference to `exact` on the same seeds; or how far it has got."""
    found, exact = task.top1(rule, arm), task.top1("exact", arm)
    if len(found) < len(SEEDS):
        parts = [f"{found[seed]:.2f} (seed {seed})" for seed in SEEDS if seed in found]
        return ", ".join([*parts, f"{'the others ' if parts else ''}{MISSING}"])
    mean, half = interval(list(found.values()))
    if rule == "exact":
        return f"{mean:.2f} ± {half:.2f}"
    difference, width = interval([found[seed] - exact[seed] for seed in SEEDS])
    return f"{mean:.2f} ± {half:.2f} ({difference:+.2f} ± {width:.2f})"


def table() -> str:
    """The table of docs/rules.md, from the records."""
    columns = [f"{task.name}, {words}" for task in TASKS for words in ARMS.values()]
    columns += [f"one merge of {size} (ms)" for size in SIZES]
    times = read_json(TIMES)["sizes"] if TIMES.exists() else {}
    rows = [["rule", *columns], ["---"] * (1 + len(columns))]
    for rule in NAMES:
        cells = [accuracy_cell(task, rule, arm) for task in TASKS for arm in ARMS]
        timed = [times.get(str(size), {}).get(rule) for size in SIZES]
        cells += [f"{t['latency_ms']:.2f} (IQR {t['spread_ms']:.2f})" if t else MISSING for t in timed]
        rows.append([f"`{rule}`", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def renewed(text: str) -> str:
    """The document with its table written anew."""
    return between(text, BEGIN, END, table())


def data() -> list[Path]:
    """The files that the figure and the table are made of."""
    runs = [
        task.folder / "results" / f"{arm}-seed{seed}" / "result.json"
        for task in TASKS
        for arm in ARMS
        for seed in SEEDS
    ]
    return [*runs, *(task.folder / "results" / "rules.json" for task in TASKS)]


def draw(path: Path | None = None) -> None:
    """Every seed's top-1, and the mean with its interval where there are three."""
    figure, axes = plt.subplots(len(TASKS), 2, figsize=(9, 6.4), layout="constrained", sharey=True)
    for row, task in zip(axes, TASKS):
        for ax, (arm, words) in zip(row, ARMS.items()):
            for place, rule in enumerate(NAMES):
                values = list(task.top1(rule, arm).values())
                ax.plot(values, [place] * len(values), "o", color="#0072B2", ms=5, mfc="none", zorder=3)
                if len(values) == len(SEEDS):
                    mean, half = interval(values)
                    ax.errorbar(mean, place, xerr=half, fmt="|", color="#D55E00", ms=14, mew=2, capsize=4, lw=1.4)
                elif not values:
                    ax.text(
                        0.02,
                        place,
                        MISSING,
                        va="center",
                        fontsize=8,
                        color="0.45",
                        transform=ax.get_yaxis_transform(),
                    )
            low = min((v for rule in NAMES for v in task.top1(rule, arm).values()), default=0)
            ax.set_xlim(low - 0.12 * (100 - low) - 0.5, 100)
            ax.set_title(f"{task.name}, {words}", fontsize=10)
            ax.set_xlabel("top-1 (%)", fontsize=9)
            ax.grid(axis="x", alpha=0.3)
            ax.set_yticks(range(len(NAMES)), NAMES)
    axes[0, 0].set_ylim(len(NAMES) - 0.5, -0.5)
    figure.suptitle("○ a seed   | mean of three seeds with its 95 % interval (cut off at the frame)", fontsize=9)
    save(figure, path or PICTURE, data())


if __name__ == "__main__":
    sys.exit(main())
