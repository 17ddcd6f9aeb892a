"""Matching and merging as `rmeeto.merge` defines them: metric, hidden, residual (B, L, C), size (B, L, 1)."""

from __future__ import annotations

from torch import Tensor

from rmeeto.merge import MergePlan, match, merge_wavg


def naive_match_tokens(
    metric: Tensor, r: int, class_index: int | Tensor, exact: bool = False
) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
    """keep, source, destination and the new class index; arguments as in `rmeeto.ops.match_tokens`."""
    plan = match(metric, r, class_index, class_position="exact" if exact else "proportional")
    assert plan.class_index is not None
    return plan.keep, plan.source, plan.destination, plan.class_index


def naive_merge_tokens(
    hidden: Tensor,
    residual: Tensor | None,
    size: Tensor | None,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
) -> tuple[Tensor, Tensor]:
    """sum(x * size) / sum(size), and sum(size), of x = residual + hidden."""
    x = hidden if residual is None else residual + hidden
    return merge_wavg(MergePlan(keep, source, destination, None), x, size)
