"""The picture of a throughput measurement."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

# Okabe and Ito's colours, which stay apart for every kind of colour vision; the markers do so in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"


def draw(result: dict[str, Any]) -> Figure:
    """Speed-up beside its theory, and samples per second, against r: a line for each batch size and window.

    Args:
        result: the content of the JSON file.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows, samples = result["results"], result.get("samples", "images")
    batches = list(dict.fromkeys(row["batch_size"] for row in rows))
    windows = list(dict.fromkeys(window_of(row) for row in rows))
    ticks = sorted({_r(row) for row in rows})
    lines = [(batch, window) for batch in batches for window in windows]
    for (batch, window), colour, marker in zip(lines, cycle(COLOURS), cycle(MARKERS)):
        mine = [row for row in rows if row["batch_size"] == batch and window_of(row) == window]
        label = f"batch {batch}" + (f", window {window}" if window else "")
        style = {"color": colour, "marker": marker, "capsize": 3, "label": label}
        mine.sort(key=_r)
        r = [_r(row) for row in mine]
        quartiles = np.array([np.percentile(row["runs_ms"], (25, 50, 75)) for row in mine])
        dense = next(row["latency_ms"] for row in rows if row["batch_size"] == batch)
        for ax, scale in ((left, dense), (right, 1e3 * batch)):
            value, low, high = scale / quartiles[:, 1], scale / quartiles[:, 2], scale / quartiles[:, 0]
            ax.errorbar(r, value, yerr=(value - low, high - value), **style)
    for window, dashes in zip(windows, ("--", ":")):
        mine = [row for row in rows if row["batch_size"] == batches[0] and window_of(row) == window]
        label = "multiply-accumulates" + (f", window {window}" if window else "")
        mine.sort(key=_r)
        points = [_r(row) for row in mine], [row["theory"] for row in mine]
        left.plot(*points, color="black", linestyle=dashes, label=label)
    left.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    left.set_ylabel("speed-up over dense (times)")
    right.set_ylabel(f"throughput ({samples}/s)")
    right.set_yscale("log")
    right.yaxis.set_major_formatter(ScalarFormatter())
    right.yaxis.set_minor_formatter(ScalarFormatter())
    for ax in (left, right):
        ax.set_xlabel("r (tokens removed by each merge)")
        ax.set_xticks(ticks)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside center right", frameon=False, fontsize=8)
    figure.suptitle(f"{title(result)}, {result['device']}: medians and quartiles of {result['runs']} runs", fontsize=9)
    return figure


def _r(row: dict[str, Any]) -> float:
    """Tokens removed by each merge; of a schedule, or a rising or falling r, their mean."""
    r = row["r"]
    if isinstance(r, int | float):
        return r
    return r[0] if isinstance(r[-1], float) else sum(r) / len(r)


def window_of(row: dict[str, Any]) -> str:
    """The window of a row's matching: "2,3,3", or nothing for exact matching."""
    return ",".join(map(str, (row["merge"] or {}).get("window") or ()))


def title(settings: dict[str, Any]) -> str:
    """Model, input and how it was run."""
    ways = ["compiled"] * settings["compile"] + ["CUDA graph"] * settings["cuda_graph"]
    ways += ["by samples"] * settings.get("by_samples", False)
    *frames, size, _ = settings["input_size"][1:]
    clip = [f"{frames[0]} frames"] if frames else []
    return ", ".join([settings["model"], *clip, f"{size} px", settings["dtype"], *ways])
