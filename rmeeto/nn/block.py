"""One block: merge if this block merges, add to the residual, normalise, mix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rmeeto.merge import MergeConfig, MergePlan, match, merge_source, merge_wavg
from rmeeto.merge.window import covers
from rmeeto.nn.mamba import BiMamba, SSMFeatures
from rmeeto.ops import add_rms_norm, match_tokens, merge_tokens


@dataclass
class TokenState:
    """What flows between blocks.

    Attributes:
        hidden: (B, L, C) output of the last mixer, not yet added to the residual.
        residual: (B, L, C) fp32 stream; None before the first block.
        size: (B, L, 1) how many original tokens each token stands for; None means all 1.
        class_index: where the class token is (a (B,) tensor under ``class_position="exact"``).
        ssm: parameters of the last mixer, only when the next block's merge measures similarity on them.
        source: (B, L, L0) which original tokens went where, only when traced.
        target: (B, L0) where each original token is now, only when it is to be unmerged.
        position: (B, L) which original patch each token stands at, only when sources look at those near them.
        grid: frames, rows and columns of the original patches.
    """

    hidden: Tensor
    residual: Tensor | None = None
    size: Tensor | None = None
    class_index: int | Tensor | None = None
    ssm: SSMFeatures | None = None
    source: Tensor | None = None
    target: Tensor | None = None
    position: Tensor | None = None
    grid: tuple[int, int, int] | None = None

    def each(self, take: Callable[[Tensor], Tensor], **changes: Any) -> TokenState:
        """The state with ``take`` done to all that its tokens carry, (B, L, ...); and with other changes."""
        carried = {name: getattr(self, name) for name in ("hidden", "residual", "size", "source", "position")}
        taken = {name: take(x) for name, x in carried.items() if x is not None}
        return dataclasses.replace(self, **taken, **changes)

    def cut(self, num_tokens: int) -> TokenState:
        """The first tokens alone, for timing: the class token is then said to be among them."""
        return self.each(lambda x: x[:, :num_tokens], class_index=min(self.class_index, num_tokens - 1))


class Block(nn.Module):
    """Merge, add, normalise, mix.

    Args:
        mixer: the token mixer.
        dim: channels C.
        drop_path: rate at which the *incoming* hidden state is dropped, per sample.
        eps: of the RMS norm.
    """

    def __init__(self, mixer: BiMamba, dim: int, drop_path: float = 0.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self, state: TokenState, r: int = 0, config: MergeConfig | None = None, return_ssm: bool = False
    ) -> TokenState:
        """Advance the state by one block.

        Args:
            state: from the block before.
            r: tokens to merge first; 0 for none.
            config: how to merge; needed when ``r > 0``.
            return_ssm: hand the mixer's parameters on as the next merge's metric.
        """
        if r > 0:
            assert config is not None
            state = merge_state(state, r, config, self.drop_path)
            hidden = state.hidden
        else:
            hidden = self.drop_path(state.hidden)
        normed, residual = add_rms_norm(hidden, state.residual, self.norm.weight, self.norm.eps)
        hidden, ssm = self.mixer(normed, return_ssm=True) if return_ssm else (self.mixer(normed), None)
        return dataclasses.replace(state, hidden=hidden, residual=residual, ssm=ssm)


def recomputed(block: Block, state: TokenState, *arguments: Any) -> TokenState:
    """``block(state, ...)`` that keeps its input alone and computes the rest again in the backward pass."""

    def run(hidden: Tensor, residual: Tensor | None) -> TokenState:
        return block(dataclasses.replace(state, hidden=hidden, residual=residual), *arguments)

    # Tensors among the arguments say whose random numbers (drop path, on a GPU) have to come again.
    return checkpoint(run, state.hidden, state.residual, use_reentrant=False)


def merge_state(state: TokenState, r: int, config: MergeConfig, drop_path: nn.Module) -> TokenState:
    """Merge r tokens of a state: one matching, applied to everything that the tokens carry.

    A size-weighted average is linear, so ``hidden + residual`` is merged once instead of both (and is then the new
    hidden state, with no residual beside it); ``amax`` and ``amin`` are not, so there both are merged.
    """
    metric = state.hidden if config.metric == "X" else getattr(state.ssm, config.metric)
    plan = plan_merge(metric, r, state.class_index, config, state.grid, state.position)
    hidden, residual = drop_path(state.hidden), state.residual
    if config.mode == "sum" and not config.prune:
        hidden, size = merge_tokens(hidden, residual, state.size, plan.keep, plan.source, plan.destination)
        residual = None
    else:
        if residual is not None and (config.mode in ("sum", "mean") or config.prune):
            hidden, residual = residual + hidden, None
        if residual is not None:
            residual, _ = merge_wavg(plan, residual, state.size, config.mode)
        hidden, size = merge_wavg(plan, hidden, state.size, config.mode)
    source = None if state.source is None else merge_source(plan, state.source)
    target = None if state.target is None else plan.target().gather(1, state.target)
    position = None if state.position is None else state.position.gather(1, plan.keep)
    return TokenState(hidden, residual, size, plan.class_index, None, source, target, position, state.grid)


def plan_merge(
    metric: Tensor,
    r: int,
    class_index: int | Tensor | None,
    config: MergeConfig,
    grid: tuple[int, int, int] | None = None,
    position: Tensor | None = None,
) -> MergePlan:
    """The matching that a configuration asks for; the paper's default one has a fast path."""
    is_local = config.window is not None and not covers(config.window, grid)
    is_default = config.distance == "cosine" and config.neighbour == 1 and config.keep_order and not is_local
    if is_default and class_index is not None:
        *positions, index = match_tokens(metric, r, class_index, exact=config.class_position == "exact")
        return MergePlan(*positions, index, config.prune)
    return match(
        metric.detach(),
        r,
        class_index,
        distance=config.distance,
        neighbour=config.neighbour,
        keep_order=config.keep_order,
        prune=config.prune,
        class_position=config.class_position,
        window=config.window if is_local else None,
        grid=grid,
        position=position,
    )


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
    return state.each(  # no position, which is (B, L): a window excludes a shuffle
        lambda x: x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1])),
        target=None if state.target is None else order.argsort(1).gather(1, state.target),
    )
