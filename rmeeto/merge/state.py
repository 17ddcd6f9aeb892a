"""What flows between the blocks of a model that merges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass
class SSMFeatures:
    """A mixer's own state-space parameters, both directions combined, in token order.

    Attributes:
        B, C: (B, L, N) raw projections.
        delta: (B, L, D) step size before bias and softplus.
    """

    B: Tensor
    C: Tensor
    delta: Tensor


class TokenState(NamedTuple):
    """What flows between blocks: a tuple, which hooks, summaries and wrappers of modules know how to go through.

    Attributes:
        hidden: (B, L, C) output of the last mixer, not yet added to the residual.
        residual: (B, L, C) fp32 stream; None before the first block.
        size: (B, L, 1) how many original tokens each token stands for; None means all 1.
        class_index: where the class token is (a (B,) tensor under ``class_position="exact"``).
        ssm: parameters of the last mixer, only when the next block's merge asks for them.
        target: (B, L0) where each original token is now, -1 for a pruned one; only when it is to be known.
        cell: (B, L) the cell of the grid of patches that each token stands at, only when the rule asks for it: of the
            patches that a token is part of (``target``), the one that the others went into.
    """

    hidden: Tensor
    residual: Tensor | None = None
    size: Tensor | None = None
    class_index: int | Tensor | None = None
    ssm: SSMFeatures | None = None
    target: Tensor | None = None
    cell: Tensor | None = None

    def each(self, take: Callable[[Tensor], Tensor], **changes: Any) -> TokenState:
        """The state with ``take`` done to all that its tokens carry, (B, L, ...); and with other changes."""
        carried = {name: getattr(self, name) for name in ("hidden", "residual", "size", "cell")}
        taken: dict[str, Any] = {name: take(x) for name, x in carried.items() if x is not None}
        return self._replace(**taken, **changes)

    @property
    def source(self) -> Tensor | None:
        """Which original tokens each token stands for: (B, L, L0), from ``target``; a pruned one is part of none."""
        if self.target is None:
            return None
        tokens = torch.arange(self.hidden.shape[1], device=self.target.device)
        return (self.target.unsqueeze(1) == tokens.view(1, -1, 1)).float()


def own_places(tokens: Tensor) -> Tensor:
    """Where each token of (B, L, C) is before any merge: (B, L)."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[0], -1)
