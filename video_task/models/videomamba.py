"""VideoMamba on clips: tubelets in space and time, scanned frame by frame, the class token first."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmeeto.merge import check_neighbour
from rmeeto.nn import VisionMamba
from rmeeto.nn.layers import grid_size, sides


class TubeletEmbed(nn.Module):
    """Clip to tokens by one strided convolution, frame by frame: (B, in_chans, T, H, W) -> (B, P, C).

    Args:
        num_frames: T.
        img_size: height and width of a frame, in pixels.
        tubelet_size: frames that a token covers.
        patch_size: side of the square that it covers.
        embed_dim: channels C.
        in_chans: channels of a frame.

    Attributes:
        input_size: frames, height and width of the clip.
        grid_size: frames, rows and columns of tokens.

    Raises:
        ValueError: frames that do not fill whole tubelets, or an image smaller than a patch.
    """

    def __init__(
        self,
        num_frames: int,
        img_size: tuple[int, int],
        tubelet_size: int,
        patch_size: int,
        embed_dim: int,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        if tubelet_size < 1 or num_frames < 1 or num_frames % tubelet_size:
            raise ValueError(
                f"num_frames={num_frames}, tubelet_size={tubelet_size}; expected frames that fill whole tubelets"
            )
        self.input_size = (num_frames, *img_size)
        self.grid_size = (num_frames // tubelet_size, *grid_size(img_size, patch_size, patch_size))
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=kernel, stride=kernel)

    def forward(self, x: Tensor) -> Tensor:
        expected = (self.proj.in_channels, *self.input_size)
        if tuple(x.shape[1:]) != expected:
            shape = ", ".join(map(str, expected))
            raise ValueError(
                f"tubelet embedding: got input of shape {tuple(x.shape)}; expected (B, {shape}); make the model with "
                "the num_frames, img_size and in_chans of the clips"
            )
        return self.proj(x).flatten(2).transpose(1, 2)


class VideoMamba(VisionMamba):
    """VideoMamba for clips, dense or merged. Its mixers add the two directions, where Vim's average them.

    The position embedding is that of one frame and the class token; what tells the frames apart is
    ``temporal_pos_embedding``, which the class token has no entry in.

    Args:
        img_size: side of a frame in pixels, or (height, width).
        patch_size: side of a patch.
        embed_dim: channels C.
        depth: number of blocks.
        num_classes: outputs of the head; 0 for none.
        num_frames: frames of a clip.
        tubelet_size: frames that a token covers.
        in_chans: channels of a frame.
        options: d_state, drop_path_rate, merge and mixer, as of `VisionMamba`.

    Source: VideoMamba, arXiv 2403.06977.

    Example:
        >>> model = VideoMamba(embed_dim=576, depth=32, merge=MergeConfig(r=88))
        >>> model(torch.randn(1, 3, 8, 224, 224)).shape, model.num_tokens[0], model.num_tokens[-1]
        (torch.Size([1, 400]), 1569, 249)
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 24,
        num_classes: int = 400,
        num_frames: int = 8,
        tubelet_size: int = 1,
        in_chans: int = 3,
        **options: Any,
    ) -> None:
        embed = TubeletEmbed(num_frames, sides(img_size), tubelet_size, patch_size, embed_dim, in_chans)
        super().__init__(embed, 0, embed_dim, depth, num_classes=num_classes, average=False, **options)
        # Zero: the frames of a model that starts from an image model look like images to it.
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, self.patch_embed.grid_size[0], embed_dim))

    def set_num_frames(self, num_frames: int) -> None:
        """Take clips of another number of frames: the temporal embedding is interpolated over the clip's length.

        Args:
            num_frames: T; whole tubelets.

        Raises:
            ValueError: it is not, or they are fewer tokens than the merging needs; the model stays as it was.
        """
        old = self.patch_embed
        _, *img_size = old.input_size
        _, patch_size, _ = old.proj.stride
        new = TubeletEmbed(num_frames, tuple(img_size), old.proj.stride[0], patch_size, 1, 1)
        if self.merge_config is not None:
            check_neighbour(type(self).__name__, self.merge_config, self.depth, math.prod(new.grid_size) + 1)
        old.input_size, old.grid_size = new.input_size, new.grid_size
        self.num_patches = math.prod(new.grid_size)
        embedding = resize_temporal(self.temporal_pos_embedding.data, new.grid_size[0])
        self.temporal_pos_embedding = nn.Parameter(embedding, self.temporal_pos_embedding.requires_grad)
        if getattr(self, "pretrained_cfg", None):
            self.pretrained_cfg = {**self.pretrained_cfg, "input_size": self.input_size}

    def _num_positions(self) -> int:
        _, rows, columns = self.patch_embed.grid_size
        return rows * columns

    def embed(self, x: Tensor) -> Tensor:
        """Clip to (B, L, C) tokens with class token and both position embeddings."""
        tokens = self.patch_embed(x)
        # (1, T, 1, C) + (1, 1, rows * columns, C), in the order of the tokens
        positions = self.temporal_pos_embedding.unsqueeze(2) + self.pos_embed[:, 1:].unsqueeze(1)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        return torch.cat([cls, tokens + positions.flatten(1, 2)], dim=1)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizer factory leaves undecayed."""
        return {"pos_embed", "cls_token", "temporal_pos_embedding"}


def resize_temporal(embedding: Tensor, frames: int) -> Tensor:
    """Adapt a temporal embedding (1, T_old, C) to (1, ``frames``, C) by linear interpolation over the clip's length."""
    line = embedding.float().transpose(1, 2)
    line = F.interpolate(line, size=frames, mode="linear", align_corners=False)
    return line.transpose(1, 2).to(embedding.dtype)
