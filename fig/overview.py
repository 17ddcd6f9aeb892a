"""The overview: where tokens merge, what a merge does, how the merged model is re-trained. Readable in grey."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from fig.record import save

INK, LIGHT, DARK, ACCENT = "0.15", "#cfe3f2", "#0072B2", "#D55E00"


def overview(path: Path) -> None:
    """Three parts side by side."""
    figure = Figure(figsize=(13.5, 4.9), layout="constrained")
    for ax, draw in zip(figure.subplots(1, 3, width_ratios=(1.15, 1.0, 0.95)), (_where, _what, _training)):
        ax.set_axis_off()
        draw(ax)
    save(figure, path, [Path(__file__)])


def _where(ax: Axes) -> None:
    ax.set(xlim=(0, 10), ylim=(0, 10))
    ax.set_title("1  Between blocks, tokens merge", loc="left", fontsize=13, fontweight="bold")
    rows = [(9.0, 12, "image: patches and class token"), (7.0, 12, ""), (5.0, 9, ""), (3.0, 6, "")]
    place, before = 6, 12
    for (y, count, note), (_, after, _) in zip(rows, [*rows[1:], rows[-1]]):
        place, before = place * count // before, count  # of the class token: in proportion
        _tokens(ax, 0.6, y, count, place)
        ax.text(
            8.0,
            y,
            f"{'L' if count == 12 else 'L − r' if count == 9 else 'L − 2r'} tokens",
            va="center",
            fontsize=11,
        )
        if note:
            ax.text(0.6, y + 0.62, note, fontsize=10, color="0.35")
        if y > 3:
            _box(
                ax,
                0.6,
                y - 1.35,
                6.9,
                0.75,
                "two Mamba blocks" if after == count else "merge r tokens, two Mamba blocks",
            )
            _arrow(ax, (4.0, y - 0.32), (4.0, y - 0.58))
            _arrow(ax, (4.0, y - 1.38), (4.0, y - 1.66))
    ax.text(4.0, 2.1, "⋮", ha="center", va="center", fontsize=16)
    _box(ax, 2.2, 0.5, 3.6, 0.8, "class token → head")


def _tokens(ax: Axes, x: float, y: float, count: int, place: int) -> None:
    for i in range(count):
        colour = ACCENT if i == place else LIGHT
        ax.add_patch(Rectangle((x + 0.58 * i, y - 0.24), 0.46, 0.48, fc=colour, ec=INK, lw=1))


def _what(ax: Axes) -> None:
    ax.set(xlim=(0, 10), ylim=(0, 10))
    ax.set_title("2  One merge", loc="left", fontsize=13, fontweight="bold")
    xs = [0.9 + 1.15 * i for i in range(8)]
    pairs = {0: 1, 4: 3, 6: 7}  # sources and the destinations that they go into
    for i, x in enumerate(xs):
        source = i % 2 == 0
        y = 8.3 if source else 6.7
        ax.add_patch(Circle((x, y), 0.42, fc="white" if source else LIGHT, ec=INK, lw=2 if i in pairs else 1))
        ax.text(x, y, i, ha="center", va="center", fontsize=11)
    ax.text(0.2, 9.15, "sources: every even token (class token aside)", fontsize=10, color="0.35")
    ax.text(0.2, 5.75, "destinations: every odd one", fontsize=10, color="0.35")
    for source, destination in pairs.items():
        _arrow(ax, (xs[source], 7.85), (xs[destination], 7.15), ACCENT)
    ax.text(5.0, 5.05, "the r most similar pairs: size-weighted average", ha="center", fontsize=11, color=ACCENT)
    left = [("0+1", 2), ("2", 1), ("3+4", 2), ("5", 1), ("6+7", 2)]
    for place, (text, size) in enumerate(left):
        x = 1.5 + 1.75 * place
        ax.add_patch(Circle((x, 3.6), 0.62 if size > 1 else 0.42, fc=DARK if size > 1 else "white", ec=INK))
        ax.text(x, 3.6, text, ha="center", va="center", fontsize=10, color="white" if size > 1 else INK)
    _arrow(ax, (5.0, 4.85), (5.0, 4.4))
    ax.text(
        5.0, 2.2, "order kept, for a scan depends on it;\nclass token set aside, put back in proportion;\n"
        "sizes add up: nothing is lost", ha="center", va="center", fontsize=10.5
    )  # fmt: skip
    ax.text(
        5.0, 0.75, r"$x_b' = \frac{\sum_i s_i x_i}{\sum_i s_i},\quad s_b' = \sum_i s_i$", ha="center", va="center",
        fontsize=14,
    )  # fmt: skip


def _training(ax: Axes) -> None:
    ax.set(xlim=(0, 10), ylim=(0, 10))
    ax.set_title("3  Re-train in minutes", loc="left", fontsize=13, fontweight="bold")
    _box(ax, 3.0, 8.2, 4.0, 0.9, "images")
    _box(ax, 0.3, 5.2, 4.3, 1.7, "teacher: dense\nfrozen, r = 0", fc="0.88")
    _box(ax, 5.4, 5.2, 4.3, 1.7, "student: merged\nr > 0", fc=LIGHT)
    _arrow(ax, (3.6, 8.15), (2.2, 6.95))
    _arrow(ax, (6.4, 8.15), (7.8, 6.95))
    _box(ax, 0.3, 2.2, 9.4, 1.5, "cross entropy with the labels\n+ 0.5 KL(teacher ‖ student)", fc="white")
    _arrow(ax, (2.5, 5.15), (2.5, 3.75))
    _arrow(ax, (7.6, 5.15), (7.6, 3.75))
    _arrow(ax, (8.9, 3.75), (8.9, 5.15), ACCENT)
    ax.text(9.05, 4.45, "learn", fontsize=10, color=ACCENT, va="center")
    ax.text(5.0, 7.25, "the same weights at first", ha="center", va="center", fontsize=9.5)
    ax.text(
        5.0,
        1.1,
        "3 to 30 epochs; one model class:\nthe teacher merges nothing",
        ha="center",
        va="center",
        fontsize=10.5,
    )


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, fc: str = "0.95") -> None:
    style = "round,pad=0.02,rounding_size=0.15"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, fc=fc, ec=INK, lw=1.2))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=11)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=colour, lw=1.6, shrinkA=0, shrinkB=0)
    )
