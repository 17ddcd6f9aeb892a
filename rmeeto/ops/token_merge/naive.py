"""Matching and merging as `rmeeto.merge` defines them: metric, hidden, residual (B, L, C), size (B, L, 1)."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from rmeeto.autocast import full_precision
from rmeeto.merge import MergePlan, Tokens, merge_wavg
from rmeeto.merge.rules import exact


def naive_match_tokens(metric: Tensor, r: int, tokens: Tokens) -> MergePlan:
    """The rule `exact`, with one class index per sample looked at where it can be."""
    if _has_values(tokens.class_index):
        check_range(tokens.class_index, metric.shape[1])
    with torch.no_grad(), full_precision(metric.device):
        return exact(metric, r, tokens)


def check_range(class_index: Tensor, num_tokens: int) -> None:
    """Refuse positions that are none of the tokens. Reads them: only for a tensor in the CPU's memory."""
    if ((class_index < 0) | (class_index >= num_tokens)).any():
        raise ValueError(
            f"match_tokens: class_index from {class_index.min()} to {class_index.max()}; expected 0 to "
            f"{num_tokens - 1} in every sample"
        )


def _has_values(class_index: int | Tensor | None) -> TypeGuard[Tensor]:
    """Whether it is a tensor whose values can be read without waiting for a GPU or breaking a graph."""
    is_plain = type(class_index) is Tensor  # and not one without values, of a trace
    return is_plain and class_index.device.type == "cpu" and not torch.compiler.is_compiling()


def naive_merge_tokens(
    hidden: Tensor, residual: Tensor | None, size: Tensor | None, plan: MergePlan
) -> tuple[Tensor, Tensor]:
    """sum(x * size) / sum(size), and sum(size), of x = residual + hidden."""
    return merge_wavg(plan, hidden if residual is None else residual + hidden, size)
