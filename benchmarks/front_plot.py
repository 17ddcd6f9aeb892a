"""The panels of the suites `front` and `sizes`, drawn from their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from image_task.models import MODELS

Rows = Sequence[dict[str, Any]]
LINES = {"dense": "-", "merged": "--", "merged in a window": ":"}
LABELS = {"img_size": "edge of the picture (pixels)", "num_frames": "frames of a clip, 224 px"}


def _short(model: str) -> str:
    return model.partition("_patch")[0].removeprefix("rmeeto_")


def accuracy(ax: Any, rows: Rows, batch: int, mode: str = "eager") -> None:
    """Accuracy as reported against the latency of a batch, with quartiles; a line joins a model's dense and merged."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter  # as the suites import it: late

    mine = [row for row in rows if row["batch"] == batch and row["mode"] == mode and row["reported_top1"] is not None]
    for model in dict.fromkeys(row["model"] for row in mine):
        known = sorted((row for row in mine if row["model"] == model), key=lambda row: row["r"])
        low, high = zip(*(row["quartiles_ms"] for row in known))
        middle, top1 = (np.array([row[name] for row in known]) for name in ("median_ms", "reported_top1"))
        ours = model in MODELS
        spread = (middle - low, np.array(high) - middle)
        ax.errorbar(middle, top1, xerr=spread, fmt="o-" if ours else "s", mfc=None if ours else "none")
        place = {"xytext": (3, 3), "textcoords": "offset points"}
        ax.annotate(_short(model), (middle[0], top1[0]), fontsize=7, **place)
    ax.set(title=f"batch {batch}", xlabel="ms a batch", ylabel="top-1 as reported (%)", xscale="log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(alpha=0.3)


def savings(ax: Any, rows: Rows, batch: int, mode: str = "eager") -> None:
    """How many times faster than dense a merged model is, against r."""
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = sorted(
            (row for row in rows if (row["model"], row["batch"], row["mode"]) == (model, batch, mode)),
            key=lambda row: row["r"],
        )
        if len(mine) > 1:
            faster = [mine[0]["median_ms"] / row["median_ms"] for row in mine]
            ax.plot([row["r"] for row in mine], faster, "o-", label=_short(model))
    ax.set(xlabel="r", ylabel="times faster than dense")
    ax.legend(fontsize=7)
    ax.grid(alpha=0.3)


def lengths(ax: Any, rows: Rows, kind: str) -> None:
    """Milliseconds of a sample against the size of the input: ``img_size`` or ``num_frames``."""
    mine = [row for row in rows if row["kind"] == kind]
    sizes = sorted({row["size"] for row in mine})
    for number, model in enumerate(dict.fromkeys(row["model"] for row in mine)):
        for way in dict.fromkeys(row["way"] for row in mine if row["model"] == model):
            line = sorted((row["size"], row["median_ms"]) for row in mine if (row["model"], row["way"]) == (model, way))
            style = {"linestyle": LINES[way], "color": f"C{number}", "marker": "o"}
            ax.plot(*zip(*line), **style, label=f"{_short(model)}, {way}")
    ax.set(xscale="log", yscale="log", xlabel=LABELS[kind], ylabel="ms a sample")
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
    ax.legend(fontsize=7)
    ax.grid(alpha=0.3)
