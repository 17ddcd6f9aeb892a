"""A block of timm's Vision Transformers that merges: between its attention and its MLP, by proportional attention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from rmeeto.merge import MergeConfig, MergePlan, Tokens, TokenState, merge_wavg
from rmeeto.nn.block import feature

BLOCKS = (Block, EvaBlock, EvaBlockPostNorm)


@dataclass
class Step:
    """What a block is told beside its tokens, and what it tells.

    Attributes:
        before: the state that the tokens are of.
        r: tokens to merge.
        config: how.
        prefix: tokens at the beginning that stay.
        rope: rotary position embedding of the input's patches, (..., P, D), where the model has one.
        after: the state behind the block.
    """

    before: TokenState
    r: int
    config: MergeConfig
    prefix: int
    rope: Tensor | None = None
    after: TokenState | None = None


class MergingBlock:
    """Mixin before a block: called with a `Step` it merges, otherwise it is the block.

    Tokens go in and come out as tensors, so hooks, FSDP and summaries see a merging block as they see any other.
    """

    def forward(self, x: Tensor, *args: object, step: Step | None = None, **kwargs: object) -> Tensor:
        """(B, L, C) -> (B, L - r, C)."""
        if step is None:
            return super().forward(x, *args, **kwargs)
        step.after = merging_block(self, step.before._replace(hidden=x), step)
        return step.after.hidden


def merging_block(block: nn.Module, state: TokenState, step: Step) -> TokenState:
    """One block of timm's, with proportional attention and a merge of r tokens behind it."""
    x, size, config = state.hidden, state.size, step.config
    bias = None if size is None else size.log().to(x.dtype).transpose(1, 2).unsqueeze(1)  # (B, 1, 1, L)
    keywords = {"attn_mask": bias}
    if step.rope is not None:
        keywords["rope"] = rope_of(step.rope, state.cell, step.prefix)
    normed, output = attend(block, x, keywords)
    state = state._replace(hidden=x + output)
    if step.r > 0:
        tokens = Tokens(x.shape[1], prefix=step.prefix, keep_order=config.keep_order, prune=config.prune)
        given = {name: partial(head_mean, block.attn, normed, name) for name in "QKV"}
        given["output"] = lambda: output
        metric = state.hidden if config.metric == "X" else given[config.metric]()

        def features(name: str) -> Tensor:
            return given[name]() if name in given else feature(state, name)

        plan = config.matching.plan(metric, step.r, tokens, config.options, features)
        state = plan.carry(state, config.mode, merge_separately)._replace(class_index=state.class_index)
    return state._replace(hidden=state.hidden + feed(block, state.hidden))


def attend(block: nn.Module, x: Tensor, keywords: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
    """What the attention reads, and what it adds to the tokens."""
    if isinstance(block, EvaBlockPostNorm):
        return x, block.drop_path1(block.norm1(block.attn(x, **keywords)))
    normed = block.norm1(x)
    output = block.attn(normed, **keywords)
    return normed, block.drop_path1(_scaled(block, 1, output))


def feed(block: nn.Module, x: Tensor) -> Tensor:
    """What the MLP adds to the tokens."""
    if isinstance(block, EvaBlockPostNorm):
        return block.drop_path2(block.norm2(block.mlp(x)))
    return block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x))))


def _scaled(block: nn.Module, number: int, x: Tensor) -> Tensor:
    """The layer scale of a branch: a module in a `Block`, a parameter or None in an `EvaBlock`."""
    if isinstance(block, EvaBlock):
        gamma = getattr(block, f"gamma_{number}")
        return x if gamma is None else gamma * x
    return getattr(block, f"ls{number}")(x)


def rope_of(rope: Tensor, cell: Tensor, prefix: int) -> Tensor:
    """The rotary position embedding of the patches that are left: each token has that of its own place.

    A merged token's rotation is that of the token that the others went into: a mean of rotations is none.

    Args:
        rope: (P, D), (heads, P, D) or with the batch first, (B, 1 or heads, P, D); of the input's patches.
        cell: (B, L) place of each token among the input's tokens, the prefix first.
        prefix: tokens without one.

    Returns:
        (B, 1 or heads, L - prefix, D).
    """
    rope = rope.expand(len(cell), *((1,) * (3 - rope.ndim)), *rope.shape) if rope.ndim < 4 else rope
    places = (cell[:, prefix:] - prefix)[:, None, :, None]
    return rope.gather(2, places.expand(-1, rope.shape[1], -1, rope.shape[3]))


def merge_separately(plan: MergePlan, state: TokenState, mode: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Hidden states and residual merged each for itself."""
    merged = {}
    for name in ("residual", "hidden"):
        x, size = getattr(state, name), state.size
        if x is None or plan.prune:
            merged[name] = None if x is None else plan.merge(x)
            size = None if size is None else plan.merge(size)
        else:
            merged[name], size = merge_wavg(plan, x, size, mode)
    return merged["hidden"], merged["residual"], size


@torch.no_grad()
def head_mean(attention: nn.Module, x: Tensor, which: str) -> Tensor:
    """Queries, keys or values averaged over the heads (before any norm or rotation): (B, L, C) -> (B, L, C / heads)."""
    number, fused = "QKV".index(which), attention.qkv
    heads = attention.num_heads
    if fused is None:
        return getattr(attention, f"{which.lower()}_proj")(x).unflatten(-1, (-1, attention.head_dim)).mean(-2)
    if type(fused) is not nn.Linear:  # with an adapter, or quantised: what it computes counts
        mean = fused(x).unflatten(-1, (3, heads, -1))[..., number, :, :].mean(-2)
    else:  # the average of linear maps is a linear map, so the weights are averaged, not the tokens
        weight, bias = fused.weight.unflatten(0, (3, heads, -1))[number].mean(0), fused.bias
        if bias is not None:
            bias = bias.unflatten(0, (3, heads, -1))[number].mean(0)
        mean = F.linear(x, weight, bias)
    own = getattr(attention, f"{which.lower()}_bias", None)  # EVA's, beside its projection
    return mean if own is None else mean + own.unflatten(0, (heads, -1)).mean(0)
