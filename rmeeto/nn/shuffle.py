"""Shuffling of tokens before a merge: the paper's ablation of what order is worth."""

from __future__ import annotations

import torch
from torch import Tensor

from rmeeto.merge import MergeConfig, TokenState
from rmeeto.merge.plan import take_tokens


def shuffle_order(config: MergeConfig, num_tokens: int, staying: int | range | Tensor, device: torch.device) -> Tensor:
    """Where each token comes from, (L,) or (B, L): new token t is old token ``order[t]``.

    ``random`` draws from torch's global CPU generator, so that a seed gives the same order on every device: which share
    of the tokens, then in which order they go. The order is then copied to the device, which no CUDA graph can hold.

    Args:
        staying: the tokens that stay where they are: the class token, in each sample where a (B,) tensor says, or a
            Transformer's prefix.
    """
    several = isinstance(staying, range)
    patches = num_tokens - (len(staying) if several else 1)
    if config.shuffle == "random":
        order, share = torch.arange(patches), int(config.shuffle_rate * patches)
        chosen = torch.randperm(patches)[:share]
        order[chosen] = chosen[torch.randperm(share)]
        order = order.to(device)
    else:
        order = torch.cat([torch.arange(first, patches, 2, device=device) for first in (0, 1)])
    index = torch.arange(num_tokens, device=device)
    if not isinstance(staying, Tensor):
        first, after = (staying.start, staying.stop) if several else (staying, staying + 1)
        positions = torch.cat([index[:first], index[after:]])
        return index.scatter(0, positions, positions[order])
    index = index.expand(staying.shape[0], -1)
    positions = index[:, :-1] + (index[:, :-1] >= staying.unsqueeze(1))
    return index.scatter(1, positions, positions[:, order])


def shuffle_state(state: TokenState, config: MergeConfig, prefix: int | None = None) -> TokenState:
    """The tokens in a new order; parameters of the last mixer (metrics B, C, delta) stay as they are, as released.

    Args:
        prefix: of a Transformer, how many tokens at the beginning stay; of a scan, None: its class token stays.
    """
    batch, num_tokens, _ = state.hidden.shape
    staying = state.class_index if prefix is None else range(prefix)
    order = shuffle_order(config, num_tokens, staying, state.hidden.device).expand(batch, -1)
    target = state.target
    if target is not None:
        target = torch.where(target < 0, -1, order.argsort(1).gather(1, target.clamp(min=0)))
    return state.each(lambda x: take_tokens(x, order), target=target)
