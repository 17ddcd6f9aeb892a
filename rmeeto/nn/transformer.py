"""Token merging in timm's VisionTransformer: in every block, between the attention and the MLP."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from rmeeto.merge import (
    MergeConfig,
    MergePlan,
    Tokens,
    TokenState,
    check_neighbour,
    merge_wavg,
    removals,
    token_counts,
)
from rmeeto.merge.state import own_places
from rmeeto.nn.block import feature
from rmeeto.nn.features import take_indices, to_map
from rmeeto.nn.features import unmerge as unmerge_tokens


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

    metrics = ("X", "Q", "K", "V")
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
        defaults = MergeConfig()
        for option in ("interval", "odd", "class_position", "shuffle", "released_flip", "window"):
            value = getattr(config, option)
            if value != getattr(defaults, option) and (option, value) != ("interval", 1):
                raise ValueError(
                    f"{name}: {option}={value!r} has no effect: a Transformer merges in every block and its class "
                    "token stays first; leave it out"
                )
        config.check_metrics(name, "a Transformer", self.metrics)
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
        state = self.encode(x)
        tokens = self.norm(state.hidden)
        if self.global_pool != "token":
            tokens = unmerge_tokens(tokens, state.target)
        return self.forward_head(tokens)

    def forward_features(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Normalised tokens (B, L', C): the prefix, then those that are left."""
        if not self._merges:
            return super().forward_features(x, *args, **kwargs)
        self._refuse_masks(args, kwargs)
        return self.norm(self.encode(x).hidden)

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
        for i, state in enumerate(self.states(x)):
            if i in wanted:
                tokens = self.norm(state.hidden) if norm else state.hidden
                if unmerge:
                    tokens = unmerge_tokens(tokens, state.target)
                patches = to_map(tokens[:, self.num_prefix_tokens :], grid, output_fmt)
                prefix = tokens[:, : self.num_prefix_tokens]
                features.append((patches, prefix) if return_prefix_tokens else patches)
            if stop_early and i == last:
                break
        return features if intermediates_only else (self.norm(state.hidden), features)

    def _refuse_masks(self, args: tuple, kwargs: dict) -> None:
        if any(value is not None and value is not False for value in (*args, *kwargs.values())):
            raise ValueError(
                f"{type(self).__name__}: attention masks do not go with merging; got {args} {kwargs}"
            )

    def encode(self, x: Tensor) -> TokenState:
        """The state behind the last block, before the final norm; ``hidden`` holds the tokens (B, L', C)."""
        for state in self.states(x):
            last = state
        return last

    def states(self, x: Tensor, trace: bool = True) -> Iterator[TokenState]:
        """The state after each block; where each original token went is always recorded."""
        tokens = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        state = TokenState(tokens, class_index=0, target=own_places(tokens))
        depth = self._merge_depth or len(self.blocks)
        counts = removals(self.merge_config, depth, tokens.shape[1], prefix=self.num_prefix_tokens)
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        for block, r in zip(self.blocks, counts, strict=False):
            arguments = (block, state, r, self.merge_config, self.num_prefix_tokens)
            if recompute:
                state = torch.utils.checkpoint.checkpoint(merging_block, *arguments, use_reentrant=False)
            else:
                state = merging_block(*arguments)
            yield state


def merging_block(block: Block, state: TokenState, r: int, config: MergeConfig, prefix: int) -> TokenState:
    """One block of timm's, with proportional attention and a merge of r tokens behind it."""
    x, size = state.hidden, state.size
    normed = block.norm1(x)
    bias = None if size is None else size.log().to(x.dtype).transpose(1, 2).unsqueeze(1)  # (B, 1, 1, L)
    output = block.drop_path1(block.ls1(block.attn(normed, attn_mask=bias)))
    state = dataclasses.replace(state, hidden=x + output)
    if r > 0:
        tokens = Tokens(x.shape[1], prefix=prefix, keep_order=config.keep_order, prune=config.prune)
        given = {name: partial(head_mean, block.attn, normed, name) for name in "QKV"}
        given["output"] = lambda: output
        metric = state.hidden if config.metric == "X" else given[config.metric]()

        def features(name: str) -> Tensor:
            return given[name]() if name in given else feature(state, name)

        plan = config.matching.plan(metric, r, tokens, config.options, features)
        state = plan.carry(state, config.mode, merge_precisely)
    x = state.hidden
    return dataclasses.replace(state, hidden=x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))))


def merge_precisely(
    plan: MergePlan, state: TokenState, mode: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Hidden states and residual merged each for itself, with sizes and sums in fp32 if they are in half precision."""
    merged = {}
    for name in ("residual", "hidden"):
        x, size = getattr(state, name), state.size
        if x is None or plan.prune:
            merged[name] = None if x is None else plan.merge(x)
            size = None if size is None else plan.merge(size)
        else:
            precise, size = merge_wavg(plan, x.to(torch.promote_types(x.dtype, torch.float32)), size, mode)
            merged[name] = precise.to(x.dtype)
    return merged["hidden"], merged["residual"], size


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
