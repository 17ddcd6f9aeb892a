"""Vision Mamba (Vim): bidirectional Mamba blocks over patches, the class token in the middle."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from rmeeto.merge import MergeConfig
from rmeeto.nn import VisionMamba
from rmeeto.nn.layers import PatchEmbed


class Vim(VisionMamba):
    """Vim, dense or merged.

    Args:
        img_size: side of the image in pixels, or (height, width).
        patch_size: side of a patch.
        stride: step between patches; 8 with 16-pixel patches is the fine-stride form.
        embed_dim: channels C.
        depth: number of blocks.
        d_state: states per channel.
        num_classes: outputs of the head; 0 for none.
        drop_path_rate: of the last block.
        merge: how to merge, or None for the dense model.
        in_chans: channels of the image.
        mixer: makes another mixer than `BiMamba` from the channels of a block, see `VisionMamba`.

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
        d_state: int = 16,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        merge: MergeConfig | None = None,
        in_chans: int = 3,
        mixer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        patch_embed = PatchEmbed(size, patch_size, stride, embed_dim, in_chans)
        patches = patch_embed.grid_size[0] * patch_embed.grid_size[1]
        super().__init__(
            patch_embed,
            class_index=patches // 2,
            embed_dim=embed_dim,
            depth=depth,
            d_state=d_state,
            num_classes=num_classes,
            drop_path_rate=drop_path_rate,
            average=True,
            merge=merge,
            mixer=mixer,
        )
