"""VideoMamba on images: bidirectional Mamba blocks over patches, the class token first."""

from __future__ import annotations

from typing import Any

from rmeeto.nn import VisionMamba
from rmeeto.nn.layers import PatchEmbed, sides


class VideoMamba(VisionMamba):
    """VideoMamba for images, dense or merged. Its mixers add the two directions, where Vim's average them.

    Args:
        img_size: side of the image in pixels, or (height, width).
        patch_size: side of a patch.
        embed_dim: channels C.
        depth: number of blocks.
        in_chans: channels of the image.
        options: d_state, num_classes, drop_path_rate, merge and mixer, as of `VisionMamba`.

    Source: VideoMamba, arXiv 2403.06977.

    Example:
        >>> model = VideoMamba(embed_dim=576, depth=32, merge=MergeConfig(r=11))
        >>> model.num_tokens[-1]
        32
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 24,
        in_chans: int = 3,
        **options: Any,
    ) -> None:
        patch_embed = PatchEmbed(sides(img_size), patch_size, patch_size, embed_dim, in_chans)
        super().__init__(patch_embed, 0, embed_dim, depth, average=False, **options)
