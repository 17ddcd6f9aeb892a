"""What a rule decides: which tokens go into which; and the one place that moves all that tokens carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rmeeto.merge.state import TokenState

MODES = ("sum", "mean", "amax", "amin")
# (plan, state, mode) -> the hidden states, residual and sizes of the tokens that stay.
Average = Callable[["MergePlan", TokenState, str], tuple[Tensor, Tensor | None, Tensor | None]]


@dataclass(frozen=True)
class MergePlan:
    """A matching, ready to be applied to any tensor of the same tokens.

    Attributes:
        keep: (B, L - r) position, before the merge, of each token that stays.
        source: (B, r) position, before the merge, of each token that goes.
        destination: (B, r) position, after the merge, of the token that it goes into.
        class_index: position of the class token after the merge; a (B,) tensor under
            ``class_position="exact"``; None when there is none.
        prune: whether sources are dropped instead of merged.
    """

    keep: Tensor
    source: Tensor
    destination: Tensor
    class_index: int | Tensor | None
    prune: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens after the merge, the class token counted."""
        return self.keep.shape[1]

    def merge(self, x: Tensor, mode: str = "sum") -> Tensor:
        """Reduce each destination with its sources: (B, L, C) -> (B, L - r, C).

        Args:
            x: tokens before the merge.
            mode: ``sum``, ``mean``, ``amax`` or ``amin`` over a destination and all its sources.

        Raises:
            ValueError: an unknown mode, or a tensor of other tokens.
        """
        if mode not in MODES:
            raise ValueError(f"merge: mode={mode!r}; expected one of {MODES}")
        before = self.num_tokens + self.source.shape[1]
        if x.ndim != 3 or x.shape[:2] != (self.keep.shape[0], before):
            raise ValueError(
                f"merge: got a tensor of shape {tuple(x.shape)}; expected ({self.keep.shape[0]}, {before}, C)"
            )
        kept = take_tokens(x, self.keep)
        if self.prune or self.source.shape[1] == 0:
            return kept
        index = self.destination.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        moved = take_tokens(x, self.source)
        if mode == "sum":
            return kept.scatter_add(1, index, moved)
        return kept.scatter_reduce(1, index, moved, reduce=mode, include_self=True)

    def unmerge(self, y: Tensor) -> Tensor:
        """Give every original token the value of the token that it went into: (B, L - r, C) -> (B, L, C).

        A pruned token takes the value of the token that it would have gone into.
        """
        if y.ndim != 3 or y.shape[:2] != self.keep.shape:
            raise ValueError(f"unmerge: got a tensor of shape {tuple(y.shape)}; expected {(*self.keep.shape, 'C')}")
        return take_tokens(y, self.target())

    def target(self) -> Tensor:
        """Position, after the merge, that each original token went to, or would have if it is pruned: (B, L)."""
        batch, kept = self.keep.shape
        target = self.keep.new_empty(batch, kept + self.source.shape[1])
        target = target.scatter(1, self.keep, torch.arange(kept, device=target.device).expand(batch, -1))
        return target.scatter(1, self.source, self.destination)

    def carry(self, state: TokenState, mode: str = "sum", average: Average | None = None) -> TokenState:
        """The state after the merge: the one place that moves what tokens carry.

        Args:
            state: of the tokens before the merge.
            mode: as in `merge_wavg`.
            average: merges the streams; None for `merge_streams`.
        """
        hidden, residual, size = (average or merge_streams)(self, state, mode)
        return state._replace(
            hidden=hidden,
            residual=residual,
            size=size,
            class_index=self.class_index,
            ssm=None,
            target=None if state.target is None else self._follow(state.target),
            cell=None if state.cell is None else state.cell.gather(1, self.keep),
        )

    def _follow(self, target: Tensor) -> Tensor:
        """Where original tokens are now, which were at ``target`` before this merge: (B, L0); -1 for a pruned one."""
        moved = self.target()
        if not self.prune:
            return moved.gather(1, target)
        moved = moved.scatter(1, self.source, -1)
        return torch.where(target < 0, -1, moved.gather(1, target.clamp(min=0)))


def merge_streams(plan: MergePlan, state: TokenState, mode: str = "sum") -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Hidden states, residual and sizes of the tokens that stay.

    A size-weighted average is linear, so ``hidden + residual`` is merged once instead of both (and is then the new
    hidden state, with no residual beside it); so is a mean; ``amax`` and ``amin`` are not, so there both are merged.
    """
    hidden, residual, size = state.hidden, state.residual, state.size
    if residual is not None and (mode in ("sum", "mean") or plan.prune):
        hidden, residual = residual + hidden, None
    if residual is not None:
        residual, _ = merge_wavg(plan, residual, size, mode)
    hidden, size = merge_wavg(plan, hidden, size, mode)
    return hidden, residual, size


def merge_wavg(plan: MergePlan, x: Tensor, size: Tensor | None = None, mode: str = "sum") -> tuple[Tensor, Tensor]:
    """Merge tokens, weighted by how many original tokens each stands for.

    Args:
        plan: from `match`.
        x: (B, L, C) tokens.
        size: (B, L, 1) size of each token; None means all 1, in fp32 where x is in half precision, which cannot count
            on beyond 256 (bf16) or 2,048 tokens.
        mode: the reduction of both ``x * size`` and ``size``. Only ``sum`` keeps the total size.

    Returns:
        ``reduce(x * size) / reduce(size)`` of shape (B, L - r, C) in x's type, computed in fp32 at least, and the new
        sizes (B, L - r, 1). A pruning plan drops its sources and leaves the others as they are.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    if size is None:
        size = torch.ones(*x.shape[:2], 1, dtype=precise, device=x.device)
    if plan.prune or plan.source.shape[1] == 0:
        return plan.merge(x), plan.merge(size)
    new_size = plan.merge(size, mode)
    return (plan.merge(x.to(precise) * size, mode) / new_size).to(x.dtype), new_size


def merge_source(plan: MergePlan, source: Tensor | None = None) -> Tensor:
    """Record which original tokens went where.

    Args:
        plan: from `match`.
        source: (B, L, L0) record so far; None at the first merge (then L0 = L).

    Returns:
        (B, L - r, L0), 1 where the original token is part of the new token. A pruned token is part of none.
    """
    if source is None:
        batch, kept = plan.keep.shape
        tokens = kept + plan.source.shape[1]
        source = torch.eye(tokens, device=plan.keep.device).expand(batch, -1, -1)
    return plan.merge(source)


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """(B, L, ...) at (B, n) positions -> (B, n, ...)."""
    if x.ndim == 2:
        return x.gather(1, index)
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
