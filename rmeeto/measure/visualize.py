"""Pictures of what a model merged: each token in its mean colour, with borders between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.measure.history import traced_states
from rmeeto.measure.mosaic import paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PREFIX = 16  # tokens before the patches that are none


@torch.inference_mode()
def trace(model: nn.Module, images: Tensor) -> Tensor:
    """Which original tokens each final token of a model stands for.

    Args:
        model: in evaluation mode; one of image_task.models or video_task.models, or that `rmeeto.apply` was given.
        images: (B, C, H, W), or clips (B, C, T, H, W).

    Returns:
        (B, L', L): 1 where the original token is part of the final one; a pruned token is part of none.

    Raises:
        UserError: another model, or one in training mode.
    """
    for state in traced_states(model, images, "trace"):
        last = state
    return last.source


def draw_merged(
    images: Tensor,
    source: Tensor,
    class_index: int | Sequence[int] | None,
    grid: tuple[int, ...] | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
) -> Figure:
    """Draw images and, below each, what its tokens became: each in the mean colour of its patches, with borders.

    A pruned patch is hatched.

    Args:
        images: (C, H, W), (B, C, H, W), or clips (B, C, T, H, W), of which every frame is drawn; in grey where there
            are not three channels.
        source: (L', L) or (B, L', L) from `trace`.
        class_index: position of the class token among the L *original* tokens, or those of all that are no patches;
            None if there are none. Behind a class token at 0 as many others are left aside as the grid needs (a
            Transformer's distillation token, its registers).
        grid: rows and columns of patches (for clips before them the frames); None: from the number of patches and
            the shape of the image.
        mean, std: that the images were normalised with, for each channel or for all.

    Returns:
        A matplotlib figure; ``figure.savefig("merged.png")``.

    Raises:
        UserError: shapes that do not go together.

    Example:
        >>> draw_merged(images, trace(model, images), model.class_index, mean=0.5, std=0.5).savefig("merged.png")
    """
    from matplotlib.figure import Figure  # slow to import

    single = images.ndim == 3
    images, source = (images.unsqueeze(0), source.reshape(1, *source.shape[-2:])) if single else (images, source)
    aside = [] if class_index is None else [class_index] if isinstance(class_index, int) else list(class_index)
    _check(images, source, aside)
    groups = _groups(source, aside)
    clips = images.movedim(1, -1).unsqueeze(1) if images.ndim == 4 else images.movedim(1, -1)  # (B, T, H, W, C)
    clips = (clips.float().cpu() * torch.tensor(std) + torch.tensor(mean)).clamp(0, 1)
    clips = (clips if clips.shape[-1] == 3 else clips.mean(-1, keepdim=True).expand(*clips.shape[:-1], 3)).numpy()
    grid = _grid(groups.shape[1], clips.shape[1:4], grid, MOST_PREFIX if aside == [0] else 0)
    groups = groups[:, groups.shape[1] - math.prod(grid) :]
    pictures = [(clip, paint(clip, group.reshape(grid))) for clip, group in zip(clips, groups)]

    batch, frames = clips.shape[:2]
    rows, columns = (2, batch) if frames == 1 else (2 * batch, frames)  # a clip's frames side by side
    figure = Figure(figsize=(1.2 * columns, 1.2 * rows * grid[1] / grid[2] + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for i, pair in enumerate(pictures):
        for k, picture in enumerate(pair):
            for t in range(frames):
                ax = axes[k, i] if frames == 1 else axes[2 * i + k, t]
                ax.imshow(picture[t], interpolation="nearest")
    figure.suptitle(f"{source.shape[2]} tokens, {source.shape[1]} left", fontsize=9)
    return figure


def _groups(source: Tensor, aside: Sequence[int]) -> np.ndarray:
    """(B, P): the final token that each patch is part of, -1 if of none."""
    columns = [i for i in range(source.shape[2]) if i not in aside]
    patches = source[:, :, columns].cpu()
    return torch.where(patches.any(1), patches.argmax(1), -1).numpy()


def _grid(patches: int, shape: tuple[int, ...], grid: tuple[int, ...] | None, most: int) -> tuple[int, int, int]:
    """Frames, rows and columns of patches; up to `most` of the first are none."""
    if grid is None:
        likely = [_likely(patches - more, shape) for more in range(min(most, patches - 1) + 1)]
        filled = (guess for more, guess in enumerate(likely) if math.prod(guess) == patches - more)
        grid = next(filled, likely[0])
    grid = (1, *grid) if len(grid) == 2 else tuple(grid)
    if len(grid) != 3 or not 0 <= patches - math.prod(grid) <= most:
        raise UserError(
            f"draw_merged: {patches} patches do not fill a grid {grid}; give grid=(rows, columns), and class_index, "
            "where the tokens are that are no patches: 8, or range(5) of a Transformer with four registers"
        )
    return grid


def _likely(patches: int, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The grid of square patches of a picture, whether they fill it or not."""
    frames, height, width = shape
    deep = frames if patches % frames == 0 else 1
    side = math.sqrt(height * width * deep / patches)
    return deep, round(height / side), round(width / side)


def _check(images: Tensor, source: Tensor, aside: Sequence[int]) -> None:
    if images.ndim not in (4, 5):
        raise UserError(
            f"draw_merged: images have shape {tuple(images.shape)}; expected (B, C, H, W) or (B, C, T, H, W)"
        )
    if source.ndim != 3 or len(source) != len(images):
        raise UserError(
            f"draw_merged: source has shape {tuple(source.shape)}; expected ({len(images)}, tokens left, tokens)"
        )
    odd = next((at for at in aside if not 0 <= at < source.shape[2]), None)
    if odd is not None:
        raise UserError(f"draw_merged: class_index={odd}; expected 0 to {source.shape[2] - 1}, or None")
