"""Token merging in timm's VisionTransformer: in every block, between the attention and the MLP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from rmeeto.merge import (
    MergeConfig,
    MergePlan,
    check_neighbour,
    match,
    merge_wavg,
    removals,
    token_counts,
)
from rmeeto.nn.features import own_places, take_indices, to_map
from rmeeto.nn.features import unmerge as unmerge_tokens

METRICS = ("X", "Q", "K", "V")


@dataclass
class _State:
    tokens: Tensor  # (B, L, C)
    size: Tensor | None  # (B, L, 1); None means all 1
    target: Tensor  # (B, L0) where each original token is now


class MergingTransformer:
    """Mixin before `VisionTransformer` in a class's bases: the same model, which merges as ``merge_config`` says.

    Every block merges r tokens between the attention's residual add and the MLP, and attention is proportional: the
    logarithm of a token's size is added to its logits. The prefix (class and distillation token, registers) never
    merges and stays first. Similarity is measured on X (the tokens after the attention) or on Q, K or V (the block's
    projections, mean over the heads). Pools other than the class token's see every original token: an average over
    merged tokens is weighted by their sizes.

    What a `MergeConfig` can say for a scan only is refused: interval (its default 2 stands for none), odd,
    class_position, shuffle, released_flip, window, and the metrics B, C and delta.

    With ``merge_config`` None or r = 0 every method is `VisionTransformer`'s own.

    Source: ToMe, arXiv 2210.09461.
    """

    _merge_config: MergeConfig | None = None
    _merge_depth: int = 0  # blocks when configured; some may be pruned away later

    @property
    def merge_config(self) -> MergeConfig | None:
        """How the model merges; assign a `MergeConfig` or None to re-configure it in place."""
        return self._merge_config

    @merge_config.setter
    def merge_config(self, config: MergeConfig | None) -> None:
        if config is not None:
            self._check(config)
        self._merge_config, self._merge_depth = config, len(self.blocks)

    def _check(self, config: MergeConfig) -> None:
        name = type(self).__name__
        if not isinstance(config, MergeConfig):
            raise ValueError(f"merge={config!r}; expected a MergeConfig or None")
        if config.metric not in METRICS:
            raise ValueError(f"{name}: metric={config.metric!r}; a Transformer has X, Q, K and V")
        defaults = MergeConfig()
        for option in ("interval", "odd", "class_position", "shuffle", "released_flip", "window"):
            value = getattr(config, option)
            if value != getattr(defaults, option) and (option, value) != ("interval", 1):
                raise ValueError(
                    f"{name}: {option}={value!r} has no effect: a Transformer merges in every block and its class "
                    "token stays first; leave it out"
                )
        depth, tokens = len(self.blocks), self._num_input_tokens()
        if isinstance(config.r, tuple) and config.inflection is None and len(config.r) != depth:
            raise ValueError(
                f"{name}: r lists {len(config.r)} values, but {depth} blocks merge; give one for each"
            )
        check_neighbour(name, config, depth, tokens, prefix=self.num_prefix_tokens)

    @property
    def num_tokens(self) -> list[int]:
        """Number of tokens that each block's attention sees, the prefix counted (its MLP sees those left)."""
        depth, tokens = self._merge_depth or len(self.blocks), self._num_input_tokens()
        counts = token_counts(self.merge_config, depth, tokens, prefix=self.num_prefix_tokens)
        return counts[: len(self.blocks)]

    def _num_input_tokens(self) -> int:
        return self.patch_embed.num_patches + self.num_prefix_tokens

    @property
    def _merges(self) -> bool:
        return self.merge_config is not None and self.merge_config.is_active

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Logits (B, num_classes)."""
        if not self._merges:
            return super().forward(x, *args, **kwargs)
        self._refuse_masks(args, kwargs)
        state = self._encode(x)
        tokens = self.norm(state.tokens)
        if self.global_pool != "token":
            tokens = unmerge_tokens(tokens, state.target)
        return self.forward_head(tokens)

    def forward_features(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Normalised tokens (B, L', C): the prefix, then those that are left."""
        if not self._merges:
            return super().forward_features(x, *args, **kwargs)
        self._refuse_masks(args, kwargs)
        return self.norm(self._encode(x).tokens)

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
        **kwargs: object,
    ) -> list | tuple[Tensor, list]:
        """timm's own, on the full grid: every patch has the value of the token that it is part of.

        Args:
            unmerge: without it, features have as many tokens as are left, in ``NLC``.

        Raises:
            ValueError: a block that does not exist, an unknown format, or ``NCHW`` of merged tokens.
        """
        options = (indices, return_prefix_tokens, norm, stop_early, output_fmt, intermediates_only)
        if not self._merges:
            return super().forward_intermediates(x, *options, **kwargs)
        self._refuse_masks((), kwargs)
        wanted, last = take_indices(len(self.blocks), indices)
        grid = self.patch_embed.dynamic_feat_size(tuple(x.shape[-2:]))
        features = []
        for i, state in enumerate(self._states(x)):
            if i in wanted:
                tokens = self.norm(state.tokens) if norm else state.tokens
                if unmerge:
                    tokens = unmerge_tokens(tokens, state.target)
                patches = to_map(tokens[:, self.num_prefix_tokens :], grid, output_fmt)
                prefix = tokens[:, : self.num_prefix_tokens]
                features.append((patches, prefix) if return_prefix_tokens else patches)
            if stop_early and i == last:
                break
        return features if intermediates_only else (self.norm(state.tokens), features)

    def _refuse_masks(self, args: tuple, kwargs: dict) -> None:
        if any(value is not None and value is not False for value in (*args, *kwargs.values())):
            raise ValueError(
                f"{type(self).__name__}: attention masks do not go with merging; got {args} {kwargs}"
            )

    def _encode(self, x: Tensor) -> _State:
        for state in self._states(x):
            last = state
        return last

    def _states(self, x: Tensor) -> Iterator[_State]:
        """The state after each block."""
        tokens = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        state = _State(tokens, None, own_places(tokens))
        counts = removals(
            self.merge_config, self._merge_depth, tokens.shape[1], prefix=self.num_prefix_tokens
        )
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        for block, r in zip(self.blocks, counts, strict=False):
            arguments = (block, state, r, self.merge_config, self.num_prefix_tokens)
            if recompute:
                state = torch.utils.checkpoint.checkpoint(merging_block, *arguments, use_reentrant=False)
            else:
                state = merging_block(*arguments)
            yield state


def merging_block(block: Block, state: _State, r: int, config: MergeConfig, prefix: int) -> _State:
    """One block of timm's, with proportional attention and a merge of r tokens behind it."""
    x, size, target = state.tokens, state.size, state.target
    normed = block.norm1(x)
    bias = None if size is None else size.log().to(x.dtype).transpose(1, 2).unsqueeze(1)  # (B, 1, 1, L)
    x = x + block.drop_path1(block.ls1(block.attn(normed, attn_mask=bias)))
    if r > 0:
        metric = x if config.metric == "X" else head_mean(block.attn, normed, config.metric)
        plan = match(
            metric.detach(),
            r,
            distance=config.distance,
            neighbour=config.neighbour,
            keep_order=config.keep_order,
            prune=config.prune,
            prefix=prefix,
        )
        if config.prune:
            x = plan.merge(x)
        else:
            x, size = merge_precisely(plan, x, size, config.mode)
        target = plan.target().gather(1, target)
    x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return _State(x, size, target)


def merge_precisely(plan: MergePlan, x: Tensor, size: Tensor | None, mode: str) -> tuple[Tensor, Tensor]:
    """`merge_wavg` of tokens that may be in half precision: sizes and sums are kept in fp32."""
    merged, size = merge_wavg(plan, x.to(torch.promote_types(x.dtype, torch.float32)), size, mode)
    return merged.to(x.dtype), size


@torch.no_grad()
def head_mean(attention: Attention, x: Tensor, which: str) -> Tensor:
    """Queries, keys or values averaged over the heads (before any query or key norm): (B, L, C) -> (B, L, C / heads).

    The average of linear maps is a linear map, so the weights are averaged, not the tokens.
    """
    part, heads = "QKV".index(which), attention.num_heads
    weight = attention.qkv.weight.unflatten(0, (3, heads, -1))[part].mean(0)
    bias = attention.qkv.bias
    return F.linear(x, weight, None if bias is None else bias.unflatten(0, (3, heads, -1))[part].mean(0))


def why_not(model: nn.Module) -> str | None:
    """What keeps a `VisionTransformer` from merging, or None."""
    for method in ("forward", "forward_features", "forward_intermediates"):
        if getattr(type(model), method) is not getattr(VisionTransformer, method):
            return f"its class has a {method} of its own"
    for block in model.blocks:
        if type(block).forward is not Block.forward:
            return f"its blocks are {type(block).__name__}, not timm's Block"
        if type(block.attn).forward is not Attention.forward:
            return f"its attention is {type(block.attn).__name__}, not timm's Attention"
    return None
