"""Vision Mamba (Vim): bidirectional Mamba blocks over patches, the class token in the middle."""

from __future__ import annotations

from typing import Any

from rmeeto.nn import VisionMamba
from rmeeto.nn.layers import PatchEmbed, sides


class Vim(VisionMamba):
    """Vim, dense or merged.

    Args:
        img_size: side of the image in pixels, or (height, width).
        patch_size: side of a patch.
        stride: step between patches; 8 with 16-pixel patches is the fine-stride form.
        embed_dim: channels C.
        depth: number of blocks.
        in_chans: channels of the image.
        options: d_state, num_classes, drop_path_rate, merge and mixer, as of `VisionMamba`.

    Source: Vision Mamba, arXiv 2401.09417.

    Example:
        >>> model = Vim(embed_dim=192, merge=MergeConfig(r=5))
        >>> model.num_tokens[-1]
        142
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int = 16,
        embed_dim: int = 192,
        depth: int = 24,
        in_chans: int = 3,
        **options: Any,
    ) -> None:
        patch_embed = PatchEmbed(sides(img_size), patch_size, stride, embed_dim, in_chans)
        rows, columns = patch_embed.grid_size
        super().__init__(patch_embed, rows * columns // 2, embed_dim, depth, **options)
