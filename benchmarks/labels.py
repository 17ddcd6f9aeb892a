"""Labels beside the points of a plot, where they cover neither a point, nor a line, nor each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

_RADII = (7, 11, 16, 22, 30, 40)  # points of typography between a point and its label; the near ones first
_DIRECTIONS = 16
_POINT = 4  # half the edge of what a marker covers
_GAP = 1.5  # between two labels


def label(ax: Any, text: str, xy: tuple[float, float], size: float = 7) -> None:
    """Write beside a point, with a thin line to it; `place` then says where."""
    line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.45", "shrinkA": 0, "shrinkB": 3}
    ax.annotate(text, xy, (7, 0), textcoords="offset points", fontsize=size, va="center", arrowprops=line)


def place(ax: Any) -> None:
    """Move the labels of a plot, the crowded ones first, each to the nearest place that is free and within the frame.

    Where none is free, the one that covers least is taken. The layout of the figure has to be final.
    """
    figure = ax.figure
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    frame = np.array(ax.get_window_extent().extents)
    taken = np.array(list(obstacles(ax))).reshape(-1, 4)
    points = {text: ax.transData.transform(text.xy) for text in ax.texts}
    near = {text: sum(np.hypot(*(at - other)) < 60 * unit for other in points.values()) for text, at in points.items()}
    for text in sorted(points, key=lambda text: -near[text]):
        at = points[text]
        width, height = _text_size(text)
        best = None
        for radius in _RADII:
            for step in range(_DIRECTIONS):
                angle = 2 * math.pi * step / _DIRECTIONS
                dx, dy = radius * unit * math.cos(angle), radius * unit * math.sin(angle)
                # The label's nearest edge, not its middle, is what stands so far away.
                middle = at + (dx + width / 2 * math.cos(angle), dy + height / 2 * math.sin(angle))
                box = np.array([*(middle - (width / 2, height / 2)), *(middle + (width / 2, height / 2))])
                outside = (box[:2] < frame[:2] + 2).any() or (box[2:] > frame[2:] - 2).any()
                cost = 1e9 * outside + 20 * _shared(box, taken, _GAP * unit) + radius
                if best is None or cost < best[0]:
                    best = cost, box, (middle - at) / unit
        assert best is not None
        text.set(position=tuple(best[2]), ha="center", va="center")
        taken = np.vstack((taken, best[1]))


def obstacles(ax: Any) -> Iterator[np.ndarray]:
    """Boxes (left, bottom, right, top) in pixels of what a label may not cover: markers, lines, bars, the legend."""
    half = _POINT * ax.figure.dpi / 72
    for line in ax.lines:
        xy = ax.transData.transform(np.column_stack(line.get_data()).astype(float))
        if line.get_marker() not in ("None", None, ""):
            yield from (np.array([*(point - half), *(point + half)]) for point in xy)
        if line.get_linestyle() != "None":
            yield from _along(xy)
    for bars in ax.collections:
        for segment in bars.get_segments():
            yield from _along(ax.transData.transform(segment))
    if ax.get_legend() is not None:
        yield np.array(ax.get_legend().get_window_extent().extents)


def _along(xy: np.ndarray) -> Iterator[np.ndarray]:
    """Small boxes along a line through points."""
    for start, end in zip(xy[:-1], xy[1:]):
        for part in np.linspace(0, 1, max(2, int(np.hypot(*(end - start)) / 3))):
            point = start + part * (end - start)
            yield np.array([*(point - 1), *(point + 1)])


def _text_size(text: Any) -> tuple[float, float]:
    """Width and height in pixels, without the line to the point."""
    from matplotlib.text import Text

    box = Text.get_window_extent(text)
    return box.width, box.height


def _shared(box: np.ndarray, others: np.ndarray, gap: float) -> float:
    """The area that a box, with a margin, shares with others (N, 4)."""
    low, high = np.maximum(box[:2] - gap, others[:, :2]), np.minimum(box[2:] + gap, others[:, 2:])
    return float((high - low).clip(0).prod(1).sum())
