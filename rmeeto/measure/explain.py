"""What a model merged in one picture or clip, on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.measure import mosaic
from rmeeto.measure.history import Step, merge_history, not_patches
from rmeeto.measure.sheet import Panel, Scale, answers, compose

RANDOM = "RANDOM WEIGHTS, nobody trained them: what merges and every label mean nothing."
_NEVER = (1.0, 1.0, 1.0)  # of a patch that never merged
_BRIGHTEST = 0.8  # of a colour map: its end stays darker than `_NEVER` in grey as well
_LEAST = 240  # pixels of a panel, where whole numbers reach it


@dataclass(frozen=True)
class Answer:
    """What a sheet says beside the picture.

    Args:
        name: of the file.
        model: its name and how it merges.
        top: class names and probabilities, the largest first.
        note: on the names.
        trained: whether the weights are anybody's.
    """

    name: str
    model: str
    top: Sequence[tuple[str, float]]
    note: str = ""
    trained: bool = True


def check_merges(model: nn.Module) -> None:
    """Refuse a model that merges nothing.

    Raises:
        UserError: what to do.
    """
    merge = getattr(model, "merge_config", None)
    if merge is None or not merge.is_active:
        raise UserError("this model merges nothing, so there is nothing to draw; give --r, such as --r 11.")


def picture_sheet(model: nn.Module, x: Tensor, pixels: np.ndarray, answer: Answer) -> Image.Image:
    """Up to eight panels: the picture, its tokens after a third, two thirds and all of the merges, maps, the answer.

    Args:
        model: in evaluation mode; it merges.
        x: (1, C, H, W), what it sees.
        pixels: (H', W', 3) in [0, 1], the same part of the picture at its own resolution.
        answer: what else to say.
    """
    steps, grid = _history(model, x), _grid(model, x)
    pixels = mosaic.enlarged(pixels[None], grid[1], _LEAST)[0]
    groups = [_groups(step, model, grid) for step in steps]
    merges = len(steps) - 1
    chosen = sorted({-(-merges * part // 3) for part in (1, 2, 3)})  # fewer than three where there are fewer merges
    panels = [Panel(pixels, f"what the model sees, {grid[1]} x {grid[2]} patches")]
    panels += [
        Panel(
            mosaic.paint(pixels[None], groups[at])[0],
            f"after merge {at} of {merges} (block {steps[at].block}): {steps[at].num_tokens} tokens",
        )
        for at in chosen
    ]
    panels += [
        _size_map(pixels, groups[-1]),
        _depth_map(pixels, [(step.block, of) for step, of in zip(steps[1:], groups[1:])], groups[-1]),
        _order_map(pixels, steps, groups[-1]),
        Panel(answers(pixels.shape[0], answer.top, answer.note), "what the merged model answers"),
    ]
    return _compose(panels, 4, steps, answer)


def clip_sheet(
    model: nn.Module, x: Tensor, frames: np.ndarray, answer: Answer
) -> tuple[Image.Image, list[Image.Image]]:
    """A contact sheet of a clip, and the same frame by frame.

    Args:
        model: as in `picture_sheet`, of clips.
        x: (1, 3, T, H, W), what it sees.
        frames: (T, H', W', 3) in [0, 1], the same part of the frames at their own resolution.
        answer: what else to say.

    Returns:
        The sheet: in three rows the frames, their tokens in mean colours, and the tokens that span several patches
        (tubes) in a colour each, which lasts over time; and for each frame these three beside each other, under the
        same lines.
    """
    steps, grid = _history(model, x), _grid(model, x)
    frames = mosaic.enlarged(frames, grid[1], _LEAST)
    groups = _groups(steps[-1], model, grid)
    rows = [frames, mosaic.paint(frames, groups), tubes(frames, groups)]
    captions = ("frame {} of {}", "its tokens, in mean colours", "its tubes")
    panels = [
        [Panel(row[t], caption.format(t + 1, len(frames))) for t in range(len(frames))]
        for row, caption in zip(rows, captions)
    ]
    legend = _about_tubes(groups)
    sheet = _compose([panel for row in panels for panel in row], len(frames), steps, answer, legend)
    return sheet, [_compose(list(three), 3, steps, answer, legend) for three in zip(*panels)]


def _about_tubes(groups: np.ndarray) -> str:
    """What the colours of `tubes` say."""
    many = mosaic.sizes(groups) > 1
    count, used = len(np.unique(groups[many])), len(np.unique(mosaic.colours(groups)[many], axis=0))
    pruned = " hatched: pruned." if (groups < 0).any() else ""
    if not count:
        return f"Tubes (tokens of several patches): none; grey: tokens of one patch.{pruned}"
    shared = "" if used == count else f" in {used} colours, no two alike that touch"
    return (
        f"Tubes (tokens of several patches): {count}{shared}; each keeps its colour over time; "
        f"grey: tokens of one patch.{pruned}"
    )


def tubes(frames: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) in grey, and over them each token of several patches in the colour that `mosaic` gives it."""
    label = mosaic.spread(groups, *frames.shape[:3])
    table = mosaic.colours(groups)
    spans = mosaic.spread(mosaic.sizes(groups), *frames.shape[:3]) > 1
    flat = np.stack([mosaic.spread(table[..., c], *frames.shape[:3]) for c in range(3)], -1)
    grey = frames.mean(-1, keepdims=True).repeat(3, -1)
    mixed = np.where(spans[..., None], 0.8 * flat + 0.2 * grey, 0.35 + 0.65 * grey)
    mixed = np.where(label[..., None] < 0, mosaic.hatched(frames.shape), mixed)
    return mosaic.with_borders(mixed, label, groups)


def _compose(panels: list[Panel], columns: int, steps: list[Step], answer: Answer, legend: str = "") -> Image.Image:
    tokens = f"{steps[0].num_tokens} tokens, {steps[-1].num_tokens} left after {len(steps) - 1} merges"
    best = "; ".join(f"{name} {100 * share:.1f} %" for name, share in answer.top) if legend else ""
    head = [answer.name, f"{answer.model}: {tokens}", *([best, legend] if legend else [])]
    return compose(panels, columns, head, "" if answer.trained else RANDOM, _LEAST // 4 * 3)


def _grid(model: nn.Module, x: Tensor) -> tuple[int, int, int]:
    """Frames, rows and columns of the patches."""
    sized = getattr(model.patch_embed, "dynamic_feat_size", None)  # timm's, which may take any picture
    *frames, rows, columns = sized(tuple(x.shape[-2:])) if sized else model.patch_embed.grid_size
    return frames[0] if frames else 1, rows, columns


def _groups(step: Step, model: nn.Module, grid: tuple[int, int, int]) -> np.ndarray:
    """(T', rows, columns): the token that each patch is part of."""
    return np.delete(step.target[0].cpu().numpy(), not_patches(model)).reshape(grid)


def _size_map(pixels: np.ndarray, groups: np.ndarray) -> Panel:
    sizes = mosaic.sizes(groups)
    most = int(sizes.max())
    caption = "size: patches that each token stands for; white: one"
    if most < 2:
        scale, places = None, np.zeros(sizes.shape)
    else:
        places = _size_place(sizes, most)
        numbers = [2, most, *(2**power for power in range(2, most.bit_length())), *range(3, min(most, 12))]
        words = [(float(_size_place(np.array(n), most)), f"{n} patches" if n == most else f"{n}") for n in numbers]
        scale = Scale(_colormap("cividis"), list(dict.fromkeys(words[most == 2 :])))
        caption += "; else by the bar, whose scale is logarithmic"
    painted = _over(pixels, _by_place(places, "cividis", sizes == 1), groups)
    if (groups < 0).any():
        label = mosaic.spread(groups, 1, *pixels.shape[:2])[0]
        painted = np.where(label[..., None] < 0, mosaic.hatched((1, *pixels.shape))[0], painted)
        caption += "; hatched: pruned"
    return Panel(painted, caption, scale)


def _history(model: nn.Module, x: Tensor) -> list[Step]:
    """The tokens before and behind each merge.

    Raises:
        UserError: no merge removes a token, which only the settings, the depth and the input together say.
    """
    steps = merge_history(model, x)
    if len(steps) < 2:
        raise UserError(
            f"no block of this model merges any of its {steps[0].num_tokens} tokens, so there is nothing to draw; "
            "give a larger --r, or a smaller --merge_interval."
        )
    return steps


def _size_place(sizes: np.ndarray, most: int) -> np.ndarray:
    """Where sizes are on the bar: 2 at its left end, the largest at its right one."""
    return np.log(sizes.clip(2) / 2) / np.log(max(most, 3) / 2)


def _depth_map(pixels: np.ndarray, steps: list[tuple[int, np.ndarray]], groups: np.ndarray) -> Panel:
    depths, blocks = mosaic.depths(steps), [block for block, _ in steps]
    span = max(1, blocks[-1] - blocks[0])
    painted = _over(pixels, _by_place((depths - blocks[0]).clip(0) / span, "viridis", depths < 0), groups)
    happened = "merged or was pruned" if (groups < 0).any() else "merged"
    caption = f"depth: the block in which a patch first {happened}; white: in none"
    ends = dict.fromkeys([blocks[0], blocks[-1]])
    ticks = [((block - blocks[0]) / span, f"block {block}") for block in ends]
    ticks += [((block - blocks[0]) / span, f"{block}") for block in blocks[1:-1]]
    return Panel(painted, caption, Scale(_colormap("viridis"), ticks))


def _order_map(pixels: np.ndarray, steps: list[Step], groups: np.ndarray) -> Panel:
    """Which tokens a scan meets before the class token, and which behind it.

    The picture is faded into the lower third of all brightnesses for those before, and the upper third for those
    behind, with a line between: so they stay apart on any picture, and in grey.
    """
    grey = pixels.mean(-1, keepdims=True).repeat(3, -1)
    places = [_place(step) for step in (steps[0], steps[-1])]
    if places[1] is None:
        return Panel(grey, "this model has no class token")
    label = mosaic.spread(groups, 1, *pixels.shape[:2])[0]
    before, pruned = ((label >= 0) & (label < places[1]), label < 0)
    dark, light = np.array([0.25, 0.36, 0.6]), np.array([1.0, 0.97, 0.85])
    tinted = np.where(before[..., None], (0.3 + 0.7 * grey) * dark, (0.7 + 0.3 * grey) * light)
    tinted = np.where(pruned[..., None], mosaic.hatched((1, *pixels.shape))[0], tinted)
    tinted = mosaic.with_borders(tinted[None], before[None] + 2 * pruned[None], groups, times=2)[0]
    sides = "dark: the tokens before it, light: behind it" if before.any() else "no token is before it"
    caption = (
        f"class token: number {places[0]} of {steps[0].num_tokens}, {places[1]} of {steps[-1].num_tokens} after the "
        f"merges (from 0); {sides}{'; hatched: pruned' if pruned.any() else ''}"
    )
    return Panel(tinted, caption)


def _place(step: Step) -> int | None:
    """Where the class token is."""
    return step.class_index if isinstance(step.class_index, int | None) else int(step.class_index[0])


def _over(pixels: np.ndarray, table: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Colours of patches (T', rows, columns, 3), with borders where the groups differ."""
    size = (1, *pixels.shape[:2])
    painted = np.stack([mosaic.spread(table[..., c], *size) for c in range(3)], -1)
    return mosaic.with_borders(painted, mosaic.spread(groups, *size), groups)[0]


def _by_place(places: np.ndarray, name: str, never: np.ndarray) -> np.ndarray:
    """The colours of places on a bar, (..., 3)."""
    table = _colormap(name)
    return np.where(never[..., None], _NEVER, table[np.rint(places * (len(table) - 1)).astype(int)])


def _colormap(name: str) -> np.ndarray:
    """256 colours that rise evenly in lightness."""
    import matplotlib

    return matplotlib.colormaps[name](np.linspace(0, _BRIGHTEST, 256))[:, :3]
