"""Matching and merging as `rmeeto.merge` defines them: metric, hidden, residual (B, L, C), size (B, L, 1)."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from rmeeto.merge import MergePlan, match, merge_wavg


def naive_match_tokens(
    metric: Tensor, r: int, class_index: int | Tensor, exact: bool = False
) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
    """keep, source, destination and the new class index; arguments as in `rmeeto.ops.match_tokens`."""
    if _has_values(class_index):
        check_range(class_index, metric.shape[1])
    plan = match(metric, r, class_index, class_position="exact" if exact else "proportional")
    assert plan.class_index is not None
    return plan.keep, plan.source, plan.destination, plan.class_index


def check_range(class_index: Tensor, num_tokens: int) -> None:
    """Refuse positions that are none of the tokens. Reads them: only for a tensor in the CPU's memory."""
    if ((class_index < 0) | (class_index >= num_tokens)).any():
        raise ValueError(
            f"match_tokens: class_index from {class_index.min()} to {class_index.max()}; expected 0 to "
            f"{num_tokens - 1} in every sample"
        )


def _has_values(class_index: int | Tensor) -> TypeGuard[Tensor]:
    """Whether it is a tensor whose values can be read without waiting for a GPU or breaking a graph."""
    is_plain = type(class_index) is Tensor  # and not one without values, of a trace
    return is_plain and class_index.device.type == "cpu" and not torch.compiler.is_compiling()


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
