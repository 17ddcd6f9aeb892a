"""One block: merge if this block merges, add to the residual, normalise, mix."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rmeeto.merge import MergeConfig, MergePlan, Tokens, TokenState
from rmeeto.merge.plan import merge_streams
from rmeeto.merge.rules import exact
from rmeeto.ops import add_rms_norm, match_tokens, merge_tokens


class Block(nn.Module):
    """Merge, add, normalise, mix.

    Args:
        mixer: the token mixer, (B, L, C) -> (B, L, C).
        dim: channels C.
        drop_path: rate at which the *incoming* hidden state is dropped, per sample.
        eps: of the RMS norm.
    """

    def __init__(self, mixer: nn.Module, dim: int, drop_path: float = 0.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self,
        state: TokenState,
        r: int = 0,
        config: MergeConfig | None = None,
        return_ssm: bool = False,
        grid: tuple[int, int, int] | None = None,
    ) -> TokenState:
        """Advance the state by one block.

        Args:
            state: from the block before.
            r: tokens to merge first; 0 for none.
            config: how to merge; needed when ``r > 0``.
            return_ssm: hand the mixer's parameters on to the next merge.
            grid: frames, rows and columns of the original patches.
        """
        if r > 0:
            assert config is not None
            state = merge_state(state, r, config, self.drop_path, grid)
            hidden = state.hidden
        else:
            hidden = self.drop_path(state.hidden)
        normed, residual = add_rms_norm(hidden, state.residual, self.norm.weight, self.norm.eps)
        hidden, ssm = self.mixer(normed, return_ssm=True) if return_ssm else (self.mixer(normed), None)
        return state._replace(hidden=hidden, residual=residual, ssm=ssm)


def recomputed(block: Block, state: TokenState, *arguments: Any) -> TokenState:
    """``block(state, ...)`` that keeps its input alone and computes the rest again in the backward pass."""

    def run(hidden: Tensor, residual: Tensor | None) -> TokenState:
        return block(state._replace(hidden=hidden, residual=residual), *arguments)

    # Tensors among the arguments say whose random numbers (drop path, on a GPU) have to come again.
    return checkpoint(run, state.hidden, state.residual, use_reentrant=False)


def merge_state(
    state: TokenState,
    r: int,
    config: MergeConfig,
    drop_path: nn.Module,
    grid: tuple[int, int, int] | None = None,
) -> TokenState:
    """Merge r tokens of a state: one matching, applied to everything that the tokens carry."""
    plan = plan_merge(state, r, config, grid)
    state = state._replace(hidden=drop_path(state.hidden))
    return plan.carry(state, config.mode, merge_on_kernels)


def merge_on_kernels(plan: MergePlan, state: TokenState, mode: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`merge_streams`; the size-weighted average has kernels."""
    if mode != "sum" or plan.prune:
        return merge_streams(plan, state, mode)
    hidden, size = merge_tokens(state.hidden, state.residual, state.size, plan)
    return hidden, None, size


def plan_merge(state: TokenState, r: int, config: MergeConfig, grid: tuple[int, int, int] | None = None) -> MergePlan:
    """The matching of a state's tokens that a configuration asks for; the exact rule has kernels."""
    tokens = Tokens(
        state.hidden.shape[1],
        state.class_index,
        grid=grid,
        cell=state.cell,
        keep_order=config.keep_order,
        class_position=config.class_position,
        prune=config.prune,
    )
    metric = state.hidden if config.metric == "X" else getattr(state.ssm, config.metric)
    rule = config.matching
    function = match_tokens if rule.function is exact else rule.function
    return rule.plan(metric, r, tokens, config.options, partial(feature, state), function)


def feature(state: TokenState, name: str) -> Tensor:
    """What a rule asks for of a state: (B, L, ...), see `rmeeto.merge.rules.FEATURES`."""
    if name == "output":
        return state.hidden
    if name == "hidden":
        return state.hidden if state.residual is None else state.residual + state.hidden
    if name == "size":
        return state.hidden.new_ones(*state.hidden.shape[:2], 1) if state.size is None else state.size
    return getattr(state.ssm, name)
