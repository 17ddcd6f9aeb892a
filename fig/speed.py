"""Figure of speed: seconds beside multiply-accumulates, what matching costs on long clips, and where a merged Vision
Mamba stands beside other models, as far as that is recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import front_plot, labels
from fig.record import ROOT, save
from rmeeto.json_file import read_json

RESULTS = ROOT / "benchmarks" / "results"
TARGETS = RESULTS / "targets-fp32-cpu-pt2.15.0.json"
WINDOWS = RESULTS / "window-fp32-cpu-pt2.15.0.json"
FRONT = RESULTS / "front-fp32-cpu-pt2.15.0.json"
SIZES = RESULTS / "sizes-fp32-cpu-pt2.15.0.json"


def data() -> list[Path]:
    """The results that the figure is drawn from."""
    return [TARGETS, WINDOWS, *(path for path in (FRONT, SIZES) if path.exists())]


def speed(path: Path) -> None:
    """Two panels for each result, or pair of results, that is recorded."""
    recorded = data()
    save(draw(recorded), path, recorded)


def draw(recorded: list[Path]) -> Figure:
    """The figure of these results."""
    lines = len(recorded) - 1
    figure = Figure(figsize=(9, 3.8 * lines), layout="constrained")
    axes = iter(figure.subplots(lines, 2, squeeze=False))
    targets, windows = read_json(TARGETS), read_json(WINDOWS)
    left, right = next(axes)
    _merged_over_dense(left, targets["rows"])
    _matching(right, windows["time"])
    said = [
        f"Top left: seconds are {_measured(targets)}; error bars are as long as the quartiles are apart.",
        f"Top right: matching is {_measured(windows)}.",
    ]
    named = []
    if FRONT in recorded:
        front, named = read_json(FRONT), list(next(axes))
        for ax, batch in zip(named, sorted({row["batch"] for row in front["rows"]})):
            front_plot.accuracy(ax, front["rows"], batch)
        said.append(f"Middle: latency is {_measured(front)}; accuracy is as papers and timm's tables report it.")
    if SIZES in recorded:
        sizes = read_json(SIZES)
        for ax, kind in zip(next(axes), front_plot.LABELS):
            front_plot.lengths(ax, sizes["rows"], kind)
        said.append(f"Bottom: latency is {_measured(sizes)}.")
    figure.suptitle("\n".join(said), fontsize=9)
    for ax in named:  # at last, for whatever comes later moves the axes
        labels.place(ax)
    return figure


def _measured(result: dict[str, Any]) -> str:
    where = f"{result['device']}, {result['threads']} threads"
    return f"measured on {where}, fp32, medians of {result['runs']}"


def _merged_over_dense(left: Any, rows: list[dict[str, Any]]) -> None:
    """Merged over dense, measured and counted."""
    rows = [row for row in rows if row["row"].startswith("Vim-Ti merged over dense")]
    places = np.arange(len(rows))
    names = [row["row"].rpartition(", ")[2] for row in rows]
    left.bar(places - 0.2, [row["theory"] for row in rows], 0.38, color="0.75", label="multiply-accumulates")
    measured, spread = ([row[name] for row in rows] for name in ("ratio", "spread"))
    left.bar(places + 0.2, measured, 0.38, yerr=np.array(spread) / 2, capsize=4, color="#0072B2", label="seconds")
    for place, row in zip(places, rows):
        left.text(place - 0.2, 1.005, f"{row['theory']:.2f}", ha="center", va="bottom", fontsize=9)
        left.text(place + 0.2, 1.005, f"{row['ratio']:.2f}", ha="center", va="bottom", fontsize=9, color="white")
    left.set_xticks(places, names)
    left.set(ylim=(1, 1.5), ylabel="dense over merged", title="Vim-Ti, batch 8, 224 px")
    left.legend(fontsize=8, loc="upper left")


def _matching(right: Any, times: list[dict[str, Any]]) -> None:
    """One matching against the length of a clip."""
    frames = [row["frames"] for row in times]
    marks = (
        ("exact, torch", "exact, PyTorch", "s", "#D55E00"),
        ("exact, fast path", "exact, C++", "D", "#CC79A7"),
    )
    for key, label, marker, colour in (*marks, ("window (2, 3, 3)", "window (2, 3, 3)", "o", "#0072B2")):
        right.plot(frames, [row[key] for row in times], marker=marker, color=colour, label=label)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(frames, frames)
    right.set(
        xlabel="frames of a clip (196 tokens each)",
        ylabel="one matching (ms)",
        title="Matching, VideoMamba-Ti",
    )
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
