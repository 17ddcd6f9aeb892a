"""The same model without the cost of merging: what is left of its time is everything else."""

from __future__ import annotations

import copy
from functools import partial
from itertools import accumulate, chain
from typing import Any

from torch import Tensor, nn

from rmeeto.merge import TokenState, removals
from rmeeto.nn import Block, MergingTransformer, VisionMamba
from rmeeto.nn.attention import attend, feed


def without_merging(model: Any) -> nn.Module | None:
    """A twin that cuts tokens off where the model merges them, for timing only: its output means nothing.

    Each block of the twin sees as many tokens as the model's does, on the same weights (shared, not copied), but
    nothing is matched, averaged or put in order: a slice, which moves no data. The difference in time is what
    merging costs in place, compiled and captured like the rest.

    Args:
        model: any model.

    Returns:
        The twin, or None if the model merges nothing (or is of a kind that is not known here).
    """
    config = getattr(model, "merge_config", None)
    if isinstance(model, VisionMamba):
        tokens, depth, blocks, layout = model.num_patches + 1, model.depth, model.layers, {}
    elif isinstance(model, MergingTransformer):
        layout = {"prefix": model.num_prefix_tokens}
        tokens, depth, blocks = model.num_tokens[0], model._merge_depth or len(model.blocks), model.blocks
    else:
        return None
    removed = removals(config, depth, tokens, **layout)[: len(blocks)]
    if not any(removed):
        return None
    kept = [tokens - total for total in accumulate(removed)]
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, shared)
    twin.merge_config = None
    if isinstance(model, VisionMamba):
        for block, left in zip(twin.layers, kept):
            block.register_forward_pre_hook(partial(_cut_state, left))
    else:
        prefix = model.num_prefix_tokens
        cut = (_CutBlock(block, left, prefix) for block, left in zip(twin.blocks, kept))
        twin.blocks = nn.ModuleList(cut) if isinstance(twin.blocks, nn.ModuleList) else nn.Sequential(*cut)
    return twin


def _cut_state(tokens: int, block: Block, arguments: tuple) -> tuple:
    state, *others = arguments
    return first_tokens(state, tokens), *others


def first_tokens(state: TokenState, num_tokens: int) -> TokenState:
    """The first tokens of a state alone, for timing: the class token is then said to be among them."""
    return state.each(lambda x: x[:, :num_tokens], class_index=min(state.class_index, num_tokens - 1))


class _CutBlock(nn.Module):
    """A Transformer's block that cuts tokens off between attention and MLP."""

    def __init__(self, block: nn.Module, tokens: int, prefix: int) -> None:
        super().__init__()
        self.block, self.tokens, self.prefix = block, tokens, prefix

    def forward(self, x: Tensor, rope: Tensor | None = None, **_: Any) -> Tensor:
        left = x.shape[1] - self.prefix
        x = x + attend(self.block, x, {} if rope is None else {"rope": rope[..., :left, :]})[1]
        x = x[:, : self.tokens]
        return x + feed(self.block, x)
