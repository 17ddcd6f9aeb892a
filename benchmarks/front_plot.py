"""The panels of the suites `front` and `sizes`, drawn from their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import labels

Rows = Sequence[dict[str, Any]]
LINES = {"dense": "-", "merged": "--", "merged in a window": ":"}
FILLS = {"merged": "white", "merged in a window": "white"}
MARKERS = "os^Dv*Pp<>"  # with the colours of Okabe and Ito: a family is known by its shape alone, too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#8A6D00", "#56B4E9", "#E69F00")
LABELS = {"img_size": "edge of the picture (pixels)", "num_frames": "frames of a clip, 224 px"}


def _short(model: str) -> str:
    return model.partition("_patch")[0].removeprefix("rmeeto_")


def _family(model: str) -> str:
    return _short(model).partition("_")[0]


def _look(number: int) -> tuple[str, str]:
    """Colour and marker."""
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def accuracy(ax: Any, rows: Rows, batch: int, mode: str = "eager") -> None:
    """Accuracy as reported against the latency of a batch, with quartiles.

    A line joins a model's dense and merged; a family has a marker and a colour of its own. `labels.place` then finds
    the places of the names.
    """
    from matplotlib.lines import Line2D  # as the suites import it: late
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    mine = [row for row in rows if row["batch"] == batch and row["mode"] == mode and row["reported_top1"] is not None]
    names = list(dict.fromkeys(row["model"] for row in mine))
    families = list(dict.fromkeys(_family(name) for name in names))
    for model in names:
        known = sorted((row for row in mine if row["model"] == model), key=lambda row: row["r"])
        colour, marker = _look(families.index(_family(model)))
        ax.plot(*zip(*((row["median_ms"], row["reported_top1"]) for row in known)), "-", color=colour, linewidth=1)
        for row in known:
            at, (low, high) = (row["median_ms"], row["reported_top1"]), row["quartiles_ms"]
            spread = [[at[0] - low], [high - at[0]]]
            filled = "white" if row["r"] else colour
            ax.errorbar(*at, xerr=spread, fmt=marker, color=colour, mfc=filled, markersize=6, elinewidth=0.8, capsize=2)
            labels.label(ax, f"r = {row['r']}" if row["r"] else _short(model), at, 6 if row["r"] else 7)
    plain = {"color": "0.3", "markersize": 6}
    meaning = [
        Line2D([], [], marker="o", linestyle="none", **plain, label="filled: dense"),
        Line2D([], [], marker="o", linestyle="none", mfc="white", **plain, label="open: merged, re-trained"),
        Line2D([], [], marker="|", **plain, linewidth=0.8, label="quartiles of the latency"),
        Line2D([], [], linestyle="none", label="shape: the model's family"),
    ]
    ax.legend(handles=meaning, fontsize=7, loc="lower right")
    ax.set(
        title=f"Accuracy and latency, batch {batch}",
        xlabel="measured ms a batch",
        ylabel="top-1 as reported (%)",
        xscale="log",
    )
    ax.margins(x=0.12, y=0.1)
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
            colour, marker = _look(number)
            style = {"linestyle": LINES[way], "color": colour, "marker": marker, "mfc": FILLS.get(way, colour)}
            ax.plot(*zip(*line), **style, label=f"{_short(model)}, {way}")
    ax.set(xscale="log", yscale="log", xlabel=LABELS[kind], ylabel="ms a sample")
    ax.set_title("Latency and length of the input, batch 1")
    ax.set_xticks(sizes, sizes)
    low, high = ax.get_ylim()
    ticks = [n * 10**k for k in range(6) for n in (1, 2, 3, 5) if low <= n * 10**k <= high]
    ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.legend(fontsize=7, handlelength=4)  # long enough to tell dashes from dots
    ax.grid(alpha=0.3)
