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
from rmeeto.measure.sheet import Panel, answers, compose, to_bytes

RANDOM = "RANDOM WEIGHTS, nobody trained them: what merges and every label mean nothing."
_NEVER = (0.86, 0.86, 0.86)  # of a patch that never merged
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
    steps, grid = merge_history(model, x), _grid(model, x)
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
        (tubes) in one colour each, which lasts over time; and for each frame these three beside each other.
    """
    steps, grid = merge_history(model, x), _grid(model, x)
    frames = mosaic.enlarged(frames, grid[1], _LEAST)
    groups = _groups(steps[-1], model, grid)
    rows = [frames, mosaic.paint(frames, groups), tubes(frames, groups)]
    captions = ("frame {} of {}", "its tokens, in mean colours", "tubes: each in one colour, over time")
    panels = [
        Panel(row[t], caption.format(t + 1, len(frames)))
        for row, caption in zip(rows, captions)
        for t in range(len(frames))
    ]
    sheet = _compose(panels, len(frames), steps, answer)
    line = np.ones((frames.shape[1], 4, 3))
    parts = [np.concatenate([part for row in rows for part in (row[t], line)][:-1], 1) for t in range(len(frames))]
    return sheet, [Image.fromarray(to_bytes(part)) for part in parts]


def tubes(frames: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) in grey, and over them each token of several patches in a colour of its own."""
    label = mosaic.spread(groups, *frames.shape[:3])
    table = mosaic.colours(groups)
    spans = mosaic.spread(mosaic.sizes(groups), *frames.shape[:3]) > 1
    flat = np.stack([mosaic.spread(table[..., c], *frames.shape[:3]) for c in range(3)], -1)
    grey = frames.mean(-1, keepdims=True).repeat(3, -1)
    mixed = np.where(spans[..., None], 0.7 * flat + 0.3 * grey, 0.35 + 0.65 * grey)
    return mosaic.with_borders(mixed, label, groups)


def _compose(panels: list[Panel], columns: int, steps: list[Step], answer: Answer) -> Image.Image:
    tokens = f"{steps[0].num_tokens} tokens, {steps[-1].num_tokens} left after {len(steps) - 1} merges"
    best = "; ".join(f"{name} {100 * share:.1f} %" for name, share in answer.top) if columns != 4 else ""
    head = [answer.name, f"{answer.model}: {tokens}", *([best] if best else [])]
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
    most = max(2, int(sizes.max()))
    level = np.log(sizes.clip(1)) / np.log(most)
    table = _colormap("cividis")
    painted = table[(level * (len(table) - 1)).astype(int)]
    painted = _over(pixels, np.where(sizes[..., None] == 1, _NEVER, painted), groups)
    return Panel(
        painted,
        "size: patches that each token stands for (grey: one)",
        (table, "2", f"{sizes.max()} patches"),
    )


def _depth_map(pixels: np.ndarray, steps: list[tuple[int, np.ndarray]], groups: np.ndarray) -> Panel:
    depths, blocks = mosaic.depths(steps), [block for block, _ in steps]
    table = _colormap("viridis")
    place = (depths - blocks[0]) / max(1, blocks[-1] - blocks[0])
    painted = table[(place.clip(0) * (len(table) - 1)).astype(int)]
    painted = _over(pixels, np.where(depths[..., None] < 0, _NEVER, painted), groups)
    caption = "depth: the block in which a patch first merged (grey: never)"
    return Panel(painted, caption, (table, f"block {blocks[0]}", f"block {blocks[-1]}"))


def _order_map(pixels: np.ndarray, steps: list[Step], groups: np.ndarray) -> Panel:
    """Which tokens a scan meets before the class token, and which behind it."""
    grey = pixels.mean(-1, keepdims=True).repeat(3, -1)
    places = [_place(step) for step in (steps[0], steps[-1])]
    if places[1] is None:
        return Panel(grey, "this model has no class token")
    label = mosaic.spread(groups, 1, *pixels.shape[:2])[0]
    before = np.where(label < places[1], 0.0, 1.0)[..., None]
    tint = before * np.array([1.0, 0.93, 0.75]) + (1 - before) * np.array([0.25, 0.45, 0.8])
    caption = (
        f"class token: number {places[0]} of {steps[0].num_tokens}, {places[1]} of {steps[-1].num_tokens} after the "
        "merges (from 0); dark: tokens before it"
    )
    return Panel(grey * tint, caption)


def _place(step: Step) -> int | None:
    """Where the class token is."""
    return step.class_index if isinstance(step.class_index, int | None) else int(step.class_index[0])


def _over(pixels: np.ndarray, table: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Colours of patches (T', rows, columns, 3), with borders where the groups differ."""
    size = (1, *pixels.shape[:2])
    painted = np.stack([mosaic.spread(table[..., c], *size) for c in range(3)], -1)
    return mosaic.with_borders(painted, mosaic.spread(groups, *size), groups)[0]


def _colormap(name: str) -> np.ndarray:
    """256 colours that rise evenly in lightness."""
    import matplotlib

    return matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3]
