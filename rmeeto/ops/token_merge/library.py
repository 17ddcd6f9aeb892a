"""How torch knows matching and merging: schemas, shapes and gradients, the same whichever kernels run.

Shapes: metric, hidden, residual (B, L, C), size (B, L, 1), keep (B, L - r), source, destination (B, r).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rmeeto.merge import MergePlan, Tokens
from rmeeto.ops.library import operator
from rmeeto.ops.token_merge import naive

_MATCH = "(Tensor metric, SymInt r, Tensor? class_index, SymInt index, bool exact) -> (Tensor, Tensor, Tensor, Tensor)"
_MERGE = (
    "(Tensor hidden, Tensor? residual, Tensor? size, Tensor keep, Tensor source, Tensor destination) "
    "-> (Tensor, Tensor)"
)
_MERGE_BACKWARD = (
    "(Tensor dmerged, Tensor? size, Tensor new_size, Tensor keep, Tensor source, Tensor destination, "
    "ScalarType dtype, bool has_residual) -> (Tensor, Tensor)"
)


def matching(name: str, kernel: Callable, storage: Sequence[torch.dtype], keys: Sequence[str] = ("CPU",)) -> Callable:
    """`match_tokens` on a kernel.

    Args:
        name: of the operator.
        kernel: takes what `_MATCH` says: ``class_index`` a (B,) tensor, or None where ``index`` is the one of all.
        storage: types that it takes; others go to the definition.
        keys: of torch's dispatcher that the kernel is for.
    """
    registered = operator(name, _MATCH, kernel, match_fake, keys=keys)

    def match_tokens(metric: Tensor, r: int, tokens: Tokens) -> MergePlan:
        """Same function as `naive_match_tokens`."""
        if metric.dtype not in storage:
            return naive.naive_match_tokens(metric, r, tokens)
        index, exact = tokens.class_index, tokens.class_position == "exact"
        given, one = (None, index) if isinstance(index, int) else (index, 0)
        keep, source, destination, place = registered(metric, r, given, one, exact)
        if not exact:
            place = index * (tokens.num - r) // tokens.num
        return MergePlan(keep, source, destination, place, tokens.prune)

    return match_tokens


def merging(
    name: str,
    kernel: Callable,
    backward: Callable,
    storage: Sequence[torch.dtype],
    keys: Sequence[str] = ("CPU",),
) -> Callable:
    """`merge_tokens` on a kernel, whose gradient is another; arguments as of `matching`, kernels as of the schemas."""
    registered_backward = operator(f"{name}_backward", _MERGE_BACKWARD, backward, merge_backward_fake, keys=keys)

    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        hidden, residual, size, keep, source, destination = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.arguments = hidden.dtype, residual is not None
        ctx.save_for_backward(size, output[1], keep, source, destination)

    def differentiate(ctx: Any, dmerged: Tensor, _: Tensor) -> tuple:
        dhidden, dresidual = registered_backward(dmerged, *ctx.saved_tensors, *ctx.arguments)
        return dhidden, dresidual if ctx.arguments[1] else None, None, None, None, None

    registered = operator(name, _MERGE, kernel, merge_fake, setup_context, differentiate, keys)

    def merge_tokens(
        hidden: Tensor, residual: Tensor | None, size: Tensor | None, plan: MergePlan
    ) -> tuple[Tensor, Tensor]:
        """Same function as `naive_merge_tokens`. Sizes are fp32."""
        is_fp32 = residual is None or residual.dtype == torch.float32
        if hidden.dtype not in storage or not is_fp32:
            return naive.naive_merge_tokens(hidden, residual, size, plan)
        size = None if size is None else size.float()
        return registered(hidden, residual, size, plan.keep, plan.source, plan.destination)

    return merge_tokens


def match_fake(
    metric: Tensor, r: int, class_index: Tensor | None, index: int, exact: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Empty results of a matching kernel."""

    def long(*shape: int) -> Tensor:
        return metric.new_empty(shape, dtype=torch.long)

    batch, num_tokens, _ = metric.shape
    return long(batch, num_tokens - r), long(batch, r), long(batch, r), long(batch if exact else 0)


def merge_fake(
    hidden: Tensor, residual: Tensor | None, size: Tensor | None, keep: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor]:
    """Empty results of a merging kernel."""
    dtype = hidden.dtype if residual is None else torch.float32
    shape = *keep.shape, hidden.shape[2]
    return hidden.new_empty(shape, dtype=dtype), hidden.new_empty((*keep.shape, 1), dtype=torch.float32)


def merge_backward_fake(dmerged: Tensor, size: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Empty gradients of hidden and residual; the latter has no elements where there is none."""
    (batch, kept, channels), (*_, source, _, dtype, has_residual) = dmerged.shape, arguments
    shape = batch, kept + source.shape[1], channels
    dresidual = dmerged.new_empty(shape if has_residual else (0,), dtype=torch.float32)
    return dmerged.new_empty(shape, dtype=dtype), dresidual
