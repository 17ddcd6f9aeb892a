"""Figure of speed: seconds beside multiply-accumulates, and what matching costs on long clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fig.record import ROOT, save
from rmeeto.json_file import read_json

RESULTS = ROOT / "benchmarks" / "results"
TARGETS = RESULTS / "targets-fp32-cpu-pt2.15.0.json"
WINDOWS = RESULTS / "window-fp32-cpu-pt2.15.0.json"


def speed(path: Path) -> None:
    """Merged over dense, measured and counted; one matching against the length of a clip."""
    targets, windows = read_json(TARGETS), read_json(WINDOWS)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row for row in targets["rows"] if row["row"].startswith("Vim-Ti merged over dense")]
    places = np.arange(len(rows))
    names = [row["row"].rpartition(", ")[2] for row in rows]
    left.bar(places - 0.2, [row["theory"] for row in rows], 0.38, color="0.75", label="multiply-accumulates")
    measured, spread = ([row[name] for row in rows] for name in ("ratio", "spread"))
    left.bar(
        places + 0.2, measured, 0.38, yerr=np.array(spread) / 2, capsize=4, color="#0072B2", label="seconds"
    )
    for place, row in zip(places, rows):
        left.text(place - 0.2, 1.005, f"{row['theory']:.2f}", ha="center", va="bottom", fontsize=9)
        left.text(
            place + 0.2, 1.005, f"{row['ratio']:.2f}", ha="center", va="bottom", fontsize=9, color="white"
        )
    left.set_xticks(places, names)
    left.set(ylim=(1, 1.5), ylabel="dense over merged", title="Vim-Ti, batch 8, 224 px")
    left.legend(fontsize=8, loc="upper left")
    times = windows["time"]
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
    figure.suptitle(
        f"{targets['device']}, {targets['threads']} threads, fp32; bars: medians of "
        f"{targets['runs']} with the distance of the quartiles",
        fontsize=9,
    )
    save(figure, path, [TARGETS, WINDOWS])
