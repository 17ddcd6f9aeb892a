"""The one model class: a stack of bidirectional Mamba blocks that can merge tokens between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from rmeeto.merge import MergeConfig, TokenState, check_neighbour, merging_blocks, removals, token_counts
from rmeeto.merge.state import own_places
from rmeeto.merge.tokens import grid_cells
from rmeeto.nn.block import Block, recomputed
from rmeeto.nn.features import as_outputs, class_first, class_token, take_indices, to_map
from rmeeto.nn.features import unmerge as unmerge_tokens
from rmeeto.nn.layers import PatchEmbed, check_drop_path, grid_size, resize_pos_embed, sides
from rmeeto.nn.mamba import BiMamba
from rmeeto.nn.shuffle import shuffle_state
from rmeeto.ops import add_rms_norm


class VisionMamba(nn.Module):
    """Patch embedding, class token, position embedding, blocks, norm, head.

    Dense model, merged student and teacher are all this class: ``merge_config`` None or with r = 0 is the dense
    model, bit for bit. Subclasses say how input becomes tokens and where the class token stands.

    Args:
        patch_embed: module that maps the input to (B, P, C) tokens by its convolution ``proj``, with attributes
            ``input_size`` and ``grid_size``.
        class_index: where the class token is put among the P patch tokens.
        embed_dim: channels C.
        depth: number of blocks.
        d_state: states per channel.
        num_classes: outputs of the head; 0 for none.
        drop_path_rate: of the last block; blocks before it less, linearly.
        average: whether the mixer halves the sum of its two directions.
        merge: how to merge, or None.
        mixer: makes the mixer of a block from its channels: any module (B, L, C) -> (B, L, C), with
            ``macs(num_tokens)`` where its cost is to be counted; None: `BiMamba`. One with ``metrics`` beside X hands
            them out as `SSMFeatures` where it is called with ``return_ssm=True``.

    Raises:
        ValueError: a merge configuration that does not fit this model, a size below 1, or a drop path rate outside
            [0, 1).
    """

    num_prefix_tokens = 1
    global_pool = "token"

    def __init__(
        self,
        patch_embed: nn.Module,
        class_index: int,
        embed_dim: int,
        depth: int,
        d_state: int = 16,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        average: bool = True,
        merge: MergeConfig | None = None,
        mixer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_drop_path(type(self).__name__, drop_path_rate)
        for name, value in (("embed_dim", embed_dim), ("depth", depth), ("d_state", d_state)):
            if value < 1:
                raise ValueError(f"{type(self).__name__}: {name}={value}; expected 1 or more")
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.depth, self.num_classes, self.class_index = depth, num_classes, class_index
        self.patch_embed = patch_embed
        self.in_chans = patch_embed.proj.in_channels
        self.num_patches = math.prod(patch_embed.grid_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self._num_positions() + 1, embed_dim))
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        # Each rate acts on the hidden state entering the next block: block i uses value i - 1 of the ramp.
        ramp = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        rates = [0.0, *ramp]
        mixer = mixer or partial(BiMamba, d_state=d_state, average=average)
        self.layers = nn.ModuleList(Block(mixer(embed_dim), embed_dim, rates[i]) for i in range(depth))
        self.drop_path = DropPath(ramp[-1]) if ramp[-1] > 0 else nn.Identity()
        self.norm_f = nn.RMSNorm(embed_dim, eps=1e-5)
        reduction = patch_embed.proj.stride[-1]
        self.feature_info = [
            {"module": f"layers.{i}", "num_chs": embed_dim, "reduction": reduction} for i in range(depth)
        ]
        self.num_recomputed = 0
        self._init_weights()
        self.merge_config = merge

    @property
    def input_size(self) -> tuple[int, ...]:
        """Shape of an input: channels, the frames of a clip, height and width."""
        return (self.in_chans, *self.patch_embed.input_size)

    def _num_positions(self) -> int:
        """Patch positions of ``pos_embed``."""
        return self.num_patches

    def _init_weights(self) -> None:
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.pos_embed, std=0.02)
        if self.num_classes:
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        for block in self.layers:
            # One residual branch per block: its last projection is scaled by 1 / sqrt(depth), as in GPT-2.
            out_proj = getattr(block.mixer, "out_proj", None)
            if isinstance(out_proj, nn.Linear):
                nn.init.kaiming_uniform_(out_proj.weight, a=math.sqrt(5))
                with torch.no_grad():
                    out_proj.weight /= math.sqrt(self.depth)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What similarity can be measured on: X, and what the mixers hand out."""
        return getattr(self.layers[0].mixer, "metrics", ("X",))

    @property
    def merge_config(self) -> MergeConfig | None:
        """How the model merges; assign a `MergeConfig` or None to re-configure it in place."""
        return self._merge_config

    @merge_config.setter
    def merge_config(self, config: MergeConfig | None) -> None:
        if config is not None:
            if not isinstance(config, MergeConfig):
                raise ValueError(f"merge={config!r}; expected a MergeConfig or None")
            kind = "a state-space model" if len(self.metrics) > 1 else "its mixer"
            config.check_metrics(type(self).__name__, kind, self.metrics, has_cells=True)
            check_neighbour(type(self).__name__, config, self.depth, self.num_patches + 1)
        self._merge_config = config
        for block in self.layers:
            if isinstance(block.mixer, BiMamba):
                block.mixer.released_flip = config is not None and config.released_flip

    @property
    def num_tokens(self) -> list[int]:
        """Number of tokens that each block's mixer sees, the class token counted."""
        return token_counts(self.merge_config, self.depth, self.num_patches + 1)[: len(self.layers)]

    def embed(self, x: Tensor) -> Tensor:
        """Input to (B, L, C) tokens with class token and position embedding."""
        tokens = self.patch_embed(x)
        cls = self.cls_token.expand(tokens.shape[0], -1, -1)
        before, after = tokens[:, : self.class_index], tokens[:, self.class_index :]
        # Entry p of the position embedding belongs to token p, wherever the class token stands.
        return torch.cat([before, cls, after], dim=1) + self.pos_embed

    def encode(self, x: Tensor, trace: bool = False) -> TokenState:
        """Run embedding, blocks and final norm.

        Args:
            x: the model's input.
            trace: keep the record of where each original token went in ``state.target``.

        Returns:
            The state after the last block; ``hidden`` holds the normalised tokens (B, L', C).
        """
        for state in self.states(x, trace):
            last = state
        hidden, residual = self._final_norm(last)
        return last._replace(hidden=hidden, residual=residual)

    def states(self, x: Tensor, trace: bool = False) -> Iterator[TokenState]:
        """The state after each block, as `encode` runs them."""
        return self._blocks(self._start(self.embed(x), trace))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the patches."""
        *frames, rows, columns = self.patch_embed.grid_size
        return math.prod(frames), rows, columns

    def _start(self, tokens: Tensor, trace: bool) -> TokenState:
        """The state before the first block."""
        state = TokenState(tokens, class_index=self.class_index)
        if trace:
            state = state._replace(target=own_places(tokens))
        if self.merge_config is not None and "cell" in self.merge_config.matching.needs:
            cells = grid_cells(tokens.shape[1], self.class_index, tokens.device)
            state = state._replace(cell=cells.expand(tokens.shape[0], -1))
        return state

    def _blocks(self, state: TokenState) -> Iterator[TokenState]:
        """Yield the state after each block."""
        config = self.merge_config
        counts = removals(config, self.depth, state.hidden.shape[1])
        needs_ssm = config is not None and config.needs_ssm
        shuffles = config is not None and config.shuffle is not None
        shuffled = merging_blocks(self.depth, config.interval, config.odd) if shuffles else []
        for i, block in enumerate(self.layers):
            if i in shuffled:  # also where there is nothing to merge
                state = shuffle_state(state, config)
            next_merges = i + 1 < self.depth and counts[i + 1] > 0
            run = recomputed if i < self.num_recomputed and torch.is_grad_enabled() else Block.__call__
            state = run(block, state, counts[i], config, needs_ssm and next_merges, self.grid)
            yield state

    def _final_norm(self, state: TokenState) -> tuple[Tensor, Tensor]:
        return self._norm(self.drop_path(state.hidden), state.residual)

    def _norm(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        return add_rms_norm(hidden, residual, self.norm_f.weight, self.norm_f.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes), and nothing else, in training and in evaluation."""
        state = self.encode(x)
        return self.head(class_token(state.hidden, state.class_index))

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised tokens (B, L', C), the class token first (timm's convention), the others in their order."""
        state = self.encode(x)
        return class_first(state.hidden, state.class_index)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        unmerge: bool = True,
        output_dict: bool = False,
    ) -> list | tuple[Tensor, list] | dict[str, Any]:
        """Feature maps of chosen blocks (timm's convention): the residual stream after the block.

        Args:
            x: the model's input.
            indices: blocks to take: None all, n the last n, or their indices (negative from the end).
            return_prefix_tokens: each feature as a pair with its class token (B, 1, C).
            norm: apply the final norm to each feature.
            stop_early: run no block behind the last one taken.
            output_fmt: ``NCHW`` (B, C, rows, columns; a video has its frames before the rows) or ``NLC`` (B, P, C).
            intermediates_only: return the list of features alone.
            unmerge: give every patch of the full grid the value of the token that it is part of. Without it, features
                have as many tokens as are left, in ``NLC``.
            output_dict: a dictionary of them, timm's: image_intermediates, image_features and, of prefix tokens,
                image_intermediates_prefix.

        Returns:
            The output of `forward_features` (after the blocks that were run) and the list of features, or that list,
            or the dictionary.

        Raises:
            ValueError: a block that does not exist, an unknown format, or ``NCHW`` of merged tokens.
        """
        wanted, last = take_indices(len(self.layers), indices)
        state, features = self._start(self.embed(x), trace=unmerge), []
        for i, after in enumerate(self._blocks(state)):
            state = after
            if i in wanted:
                patches, prefix = self._feature(state, norm)
                patches = to_map(patches, self.patch_embed.grid_size, output_fmt)
                features.append((patches, prefix) if return_prefix_tokens else patches)
            if stop_early and i == last:
                break
        final = None if intermediates_only else class_first(self._final_norm(state)[0], state.class_index)
        return as_outputs(features, final, return_prefix_tokens, output_dict)

    def _feature(self, state: TokenState, norm: bool) -> tuple[Tensor, Tensor]:
        normed, stream = self._norm(state.hidden, state.residual)
        tokens = normed if norm else stream
        if state.target is None:
            tokens = class_first(tokens, state.class_index)
        else:
            tokens = class_first(unmerge_tokens(tokens, state.target), self.class_index)
        return tokens[:, 1:], tokens[:, :1]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what `forward_intermediates` of these blocks does not need (timm's convention).

        Returns:
            The indices of the blocks, counted from the first.
        """
        wanted, last = take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.norm_f.requires_grad_(False)  # the model still runs, and DDP waits for no gradient of it
        if prune_head:
            self.reset_classifier(0)
        return wanted

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Head on the output of `forward_features`."""
        pooled = x[:, 0]
        return pooled if pre_logits else self.head(pooled)

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Take images of another size (timm's convention): the position embedding is resized to their patches.

        Args:
            img_size: side in pixels, or (height, width).
            patch_size: as it is, or None.

        Raises:
            ValueError: another patch size, an image smaller than a patch, a model of clips, or fewer tokens than the
                merging needs; the model stays as it was.
        """
        embed, name = self.patch_embed, type(self).__name__
        if not isinstance(embed, PatchEmbed) or patch_size not in (None, embed.proj.kernel_size[0]):
            raise ValueError(f"{name}: patch_size={patch_size}; images alone change their size, patches do not")
        size = sides(embed.input_size if img_size is None else img_size)
        grid = grid_size(size, embed.proj.kernel_size[0], embed.proj.stride[0])
        if self.merge_config is not None:
            check_neighbour(name, self.merge_config, self.depth, math.prod(grid) + 1)
        index = math.prod(grid) // 2 if self.class_index else 0
        new = resize_pos_embed(self.pos_embed.detach(), grid, index, self.class_index, embed.grid_size)
        self.pos_embed = nn.Parameter(new, self.pos_embed.requires_grad)
        embed.input_size = embed.img_size = size
        embed.grid_size, self.num_patches, self.class_index = grid, math.prod(grid), index
        if hasattr(self, "pretrained_cfg"):
            self.pretrained_cfg = {**self.pretrained_cfg, "input_size": self.input_size}

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head (timm's convention).

        Args:
            num_classes: its outputs; 0 for none.
            global_pool: what it reads: "token", the class token; None: as it is.

        Raises:
            ValueError: another pool.
        """
        if global_pool not in (None, self.global_pool):
            raise ValueError(
                f"{type(self).__name__}: global_pool={global_pool!r}; its head reads the class token: expected "
                "'token' or None"
            )
        self.num_classes = num_classes
        weight = self.cls_token
        head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        self.head = head.to(device=weight.device, dtype=weight.dtype)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True, num_blocks: int | None = None) -> None:
        """Compute blocks again in the backward pass instead of keeping their activations (timm's convention).

        Args:
            enable: or stop doing so.
            num_blocks: how many, from the first; None for all.
        """
        self.num_recomputed = (self.depth if num_blocks is None else num_blocks) if enable else 0

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizer factory leaves undecayed."""
        return {"pos_embed", "cls_token"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to the stem and to each block, for timm's layer-wise decay.

        Args:
            coarse: groups are stages, of which a Mamba has one a block: the same.
        """
        return {
            "stem": r"^cls_token|pos_embed|temporal_pos_embedding|patch_embed",
            "blocks": [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))],
        }
