"""Shuffling of tokens before a merge: the paper's ablation of what order is worth."""

from __future__ import annotations

import torch
from torch import Tensor

from rmeeto.merge import MergeConfig, TokenState
from rmeeto.merge.plan import take_tokens


def shuffle_order(
    config: MergeConfig, num_tokens: int, class_index: int | Tensor, device: torch.device | None = None
) -> Tensor:
    """Where each token comes from, (L,) or (B, L): new token t is old token ``order[t]``; the class token stays.

    ``random`` draws from torch's global CPU generator, so that a seed gives the same order on every device: which share
    of the tokens, then in which order they go. The order is then copied to the device, which no CUDA graph can hold.
    """
    patches = num_tokens - 1
    if config.shuffle == "random":
        order, share = torch.arange(patches), int(config.shuffle_rate * patches)
        chosen = torch.randperm(patches)[:share]
        order[chosen] = chosen[torch.randperm(share)]
        order = order.to(device)
    else:
        order = torch.cat([torch.arange(first, patches, 2, device=device) for first in (0, 1)])
    index = torch.arange(num_tokens, device=device)
    if isinstance(class_index, int):
        positions = torch.cat([index[:class_index], index[class_index + 1 :]])
        return index.scatter(0, positions, positions[order])
    index = index.expand(class_index.shape[0], -1)
    positions = index[:, :-1] + (index[:, :-1] >= class_index.unsqueeze(1))
    return index.scatter(1, positions, positions[:, order])


def shuffle_state(state: TokenState, config: MergeConfig) -> TokenState:
    """The tokens in a new order; parameters of the last mixer (metrics B, C, delta) stay as they are, as released."""
    batch, num_tokens, _ = state.hidden.shape
    order = shuffle_order(config, num_tokens, state.class_index, state.hidden.device).expand(batch, -1)
    target = state.target
    if target is not None:
        target = torch.where(target < 0, -1, order.argsort(1).gather(1, target.clamp(min=0)))
    return state.each(lambda x: take_tokens(x, order), target=target)
