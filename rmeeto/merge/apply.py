"""What a plan does to tokens, to their sizes and to the record of where they came from."""

from __future__ import annotations

import torch
from torch import Tensor

from rmeeto.merge.matching import MergePlan


def merge_wavg(
    plan: MergePlan, x: Tensor, size: Tensor | None = None, mode: str = "sum"
) -> tuple[Tensor, Tensor]:
    """Merge tokens, weighted by how many original tokens each stands for.

    Args:
        plan: from `match`.
        x: (B, L, C) tokens.
        size: (B, L, 1) size of each token; None means all 1.
        mode: the reduction of both ``x * size`` and ``size``. Only ``sum`` keeps the total size.

    Returns:
        ``reduce(x * size) / reduce(size)`` of shape (B, L - r, C), and the new sizes (B, L - r, 1). A pruning plan
        drops its sources and leaves the others as they are.
    """
    if size is None:
        size = torch.ones(*x.shape[:2], 1, dtype=x.dtype, device=x.device)
    if plan.prune or plan.source.shape[1] == 0:
        return plan.merge(x), plan.merge(size)
    new_size = plan.merge(size, mode)
    return plan.merge(x * size, mode) / new_size, new_size


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
