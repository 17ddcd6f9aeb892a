"""Pictures of what a model merged: each token in its mean colour, with borders between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.measure.mosaic import paint
from rmeeto.nn import MergingTransformer, VisionMamba

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.inference_mode()
def trace(model: nn.Module, images: Tensor) -> Tensor:
    """Which original tokens each final token of a model stands for.

    Args:
        model: one of ours, in evaluation mode: a Vision Mamba, or a Vision Transformer.
        images: (B, 3, H, W), or clips (B, 3, T, H, W).

    Returns:
        (B, L', L): 1 where the original token is part of the final one; a pruned token is part of none.

    Raises:
        UserError: another model, or one in training mode.
    """
    if model.training:
        raise UserError(f"trace: the {type(model).__name__} is in training mode; call .eval() on it first")
    if isinstance(model, VisionMamba):
        return model.encode(images, trace=True).source
    if not isinstance(model, MergingTransformer):
        raise UserError(
            f"trace: got a {type(model).__name__}; expected a model of image_task.models or apply()"
        )
    return model.encode(images).source


def draw_merged(
    images: Tensor,
    source: Tensor,
    class_index: int | None,
    grid: tuple[int, ...] | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
) -> Figure:
    """Draw images and, below each, what its tokens became: each in the mean colour of its patches, with borders.

    A pruned patch is hatched.

    Args:
        images: (3, H, W), (B, 3, H, W), or clips (B, 3, T, H, W), of which every frame is drawn.
        source: (L', L) or (B, L', L) from `trace`.
        class_index: position of the class token among the L *original* tokens; None if there is none.
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
    images, source = (
        (images.unsqueeze(0), source.reshape(1, *source.shape[-2:])) if single else (images, source)
    )
    _check(images, source, class_index)
    groups = _groups(source, class_index)
    clips = (
        images.movedim(1, -1).unsqueeze(1) if images.ndim == 4 else images.movedim(1, -1)
    )  # (B, T, H, W, 3)
    clips = (clips.float().cpu() * torch.tensor(std) + torch.tensor(mean)).clamp(0, 1).numpy()
    grid = _grid(groups.shape[1], clips.shape[1:4], grid)
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


def _groups(source: Tensor, class_index: int | None) -> np.ndarray:
    """(B, P): the final token that each patch is part of, -1 if of none."""
    columns = [i for i in range(source.shape[2]) if i != class_index]
    patches = source[:, :, columns].cpu()
    return torch.where(patches.any(1), patches.argmax(1), -1).numpy()


def _grid(patches: int, shape: tuple[int, ...], grid: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Frames, rows and columns of patches."""
    if grid is None:
        frames, height, width = shape
        deep = frames if patches % frames == 0 else 1
        side = math.sqrt(height * width * deep / patches)
        grid = (deep, round(height / side), round(width / side))
    grid = (1, *grid) if len(grid) == 2 else tuple(grid)
    if len(grid) != 3 or math.prod(grid) != patches:
        raise UserError(
            f"draw_merged: {patches} patches do not fill a grid {grid}; give grid=(rows, columns), and class_index "
            "if there is a class token"
        )
    return grid


def _check(images: Tensor, source: Tensor, class_index: int | None) -> None:
    if images.ndim not in (4, 5) or images.shape[1] != 3:
        raise UserError(
            f"draw_merged: images have shape {tuple(images.shape)}; expected (B, 3, H, W) or (B, 3, T, H, W)"
        )
    if source.ndim != 3 or len(source) != len(images):
        raise UserError(
            f"draw_merged: source has shape {tuple(source.shape)}; expected ({len(images)}, tokens left, tokens)"
        )
    if class_index is not None and not 0 <= class_index < source.shape[2]:
        raise UserError(
            f"draw_merged: class_index={class_index}; expected 0 to {source.shape[2] - 1}, or None"
        )
