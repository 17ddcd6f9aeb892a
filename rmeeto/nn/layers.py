"""Patch embedding and the resizing of what depends on the number of patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Image to tokens by one strided convolution: (B, in_chans, H, W) -> (B, P, C).

    Args:
        img_size: height and width of the image, in pixels.
        patch_size: side of a patch.
        stride: step between patches; smaller than the patch makes them overlap.
        embed_dim: channels C.
        in_chans: channels of the image.

    Attributes:
        input_size: height and width of the image; ``img_size`` in timm.
        grid_size: rows and columns of patches.
    """

    def __init__(
        self, img_size: tuple[int, int], patch_size: int, stride: int, embed_dim: int, in_chans: int = 3
    ) -> None:
        super().__init__()
        self.input_size = self.img_size = img_size
        self.grid_size = grid_size(img_size, patch_size, stride)
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        expected = (self.proj.in_channels, *self.input_size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"patch embedding: got input of shape {tuple(x.shape)}; expected (B, {expected[0]}, {expected[1]}, "
                f"{expected[2]}); make the model with the img_size and in_chans of the images, or resize them"
            )
        return self.proj(x).flatten(2).transpose(1, 2)


def sides(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, of both or of the one that both are."""
    return (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)  # type: ignore[return-value]


def check_drop_path(name: str, rate: float) -> None:
    """Refuse a drop path rate that is none.

    Args:
        name: of the model, for the error.
        rate: of its last block.

    Raises:
        ValueError: a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"{name}: drop_path_rate={rate}; expected a rate in [0, 1)")


def grid_size(img_size: tuple[int, int], patch_size: int, stride: int) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        ValueError: an image smaller than a patch, or a patch or stride of no pixel.
    """
    if not 1 <= patch_size <= min(img_size) or stride < 1:
        raise ValueError(
            f"img_size={img_size}, patch_size={patch_size}, stride={stride}: expected an image of at least one patch, "
            "and a patch and a stride of 1 or more"
        )
    return tuple((side - patch_size) // stride + 1 for side in img_size)  # type: ignore[return-value]


def resize_pos_embed(
    pos_embed: Tensor,
    grid: tuple[int, int],
    class_index: int,
    old_class_index: int | None = None,
    old_grid: tuple[int, int] | None = None,
) -> Tensor:
    """Adapt the position embedding of a grid to another grid by bicubic interpolation.

    Args:
        pos_embed: (1, 1 + P_old, C).
        grid: rows and columns of patches wanted.
        class_index: where the class token's entry is wanted.
        old_class_index: where it is in ``pos_embed``; None: in the middle if ``class_index`` is the middle of
            ``grid``, else first.
        old_grid: rows and columns that it is of; None: a square.

    Returns:
        (1, 1 + rows * columns, C).

    Raises:
        ValueError: an embedding whose number of patches is no square.
    """
    old, new = pos_embed.shape[1] - 1, grid[0] * grid[1]
    old_grid = old_grid or (math.isqrt(old),) * 2
    if math.prod(old_grid) != old:
        raise ValueError(f"position embedding: {old} patches are no square, so it cannot be resized to {grid}")
    if old_class_index is None:
        old_class_index = old // 2 if class_index == new // 2 else 0
    entry = pos_embed[:, old_class_index : old_class_index + 1]
    class_first = torch.cat([entry, pos_embed[:, :old_class_index], pos_embed[:, old_class_index + 1 :]], dim=1)
    entry, patches = resample_abs_pos_embed(class_first, list(grid), list(old_grid)).split([1, new], dim=1)
    return torch.cat([patches[:, :class_index], entry, patches[:, class_index:]], dim=1)
