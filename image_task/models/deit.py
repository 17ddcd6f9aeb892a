"""DeiT, the Transformer control: timm's VisionTransformer, merged as ToMe does."""

from __future__ import annotations

from functools import partial

from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer

from rmeeto.merge import MergeConfig
from rmeeto.nn import MergingTransformer
from rmeeto.nn.layers import check_drop_path


class Deit(MergingTransformer, VisionTransformer):
    """DeiT, dense (then timm's own model, bit for bit) or merged in every block.

    Args:
        img_size: side of the image in pixels, or (height, width).
        patch_size: side of a patch.
        embed_dim: channels C.
        depth: number of blocks.
        num_heads: attention heads.
        num_classes: outputs of the head; 0 for none.
        norm_eps: of the layer norms.
        merge: how to merge, or None for the dense model; see `MergingTransformer`.
        drop_path_rate: of the last block.
        in_chans: channels of the image.
        global_pool: what the head reads, as timm has it: "token", "avg", "max", ...
        fc_norm: norm after the pool, not before it (timm's); None: with the pools that average.

    Raises:
        ValueError: settings that do not fit.

    Source: DeiT, arXiv 2012.12877; ToMe, arXiv 2210.09461.

    Example:
        >>> model = Deit(merge=MergeConfig(r=8, metric="K"))
        >>> model.num_tokens[-1]
        109
    """

    class_index = 0

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        num_classes: int = 1000,
        norm_eps: float = 1e-6,
        merge: MergeConfig | None = None,
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        global_pool: str = "token",
        fc_norm: bool | None = None,
    ) -> None:
        check_drop_path("Deit", drop_path_rate)
        super().__init__(
            in_chans=in_chans,
            global_pool=global_pool,
            fc_norm=fc_norm,
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=num_classes,
            drop_path_rate=drop_path_rate,
            norm_layer=partial(LayerNorm, eps=norm_eps),
        )
        self.depth = depth
        self.merge_config = merge

    @property
    def num_patches(self) -> int:
        """Patches of the image."""
        return self.patch_embed.num_patches

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the image."""
        return (self.patch_embed.proj.in_channels, *self.patch_embed.img_size)
