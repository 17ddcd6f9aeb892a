"""Matching and merging on the C++ kernels, registered as ``rmeeto::match_tokens`` and ``rmeeto::merge_tokens``.

Shapes: metric, hidden, residual (B, L, C), size (B, L, 1), keep (B, L - r), source, destination (B, r).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rmeeto.ops import build
from rmeeto.ops.register import operator
from rmeeto.ops.token_merge import naive

_STORAGE = (torch.float32, torch.bfloat16)


def load() -> tuple[Callable, Callable]:
    """`match_tokens` and `merge_tokens` for tensors on the CPU.

    Raises:
        BackendUnavailable: the kernels cannot be built here.
    """
    build.library()
    return match_tokens, merge_tokens


def match_tokens(
    metric: Tensor, r: int, class_index: int | Tensor, exact: bool = False
) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
    """Same function as `naive_match_tokens`; types other than fp32 and bf16 go to it."""
    if metric.dtype not in _STORAGE:
        return naive.naive_match_tokens(metric, r, class_index, exact)
    one = isinstance(class_index, int)
    aside, index = (None, class_index) if one else (class_index, 0)
    keep, source, destination, place = _match(metric, r, aside, index, exact)
    if exact:
        return keep, source, destination, place
    num_tokens = metric.shape[1]
    return keep, source, destination, class_index * (num_tokens - r) // num_tokens


def merge_tokens(
    hidden: Tensor,
    residual: Tensor | None,
    size: Tensor | None,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
) -> tuple[Tensor, Tensor]:
    """Same function as `naive_merge_tokens`; types other than fp32 and bf16 go to it."""
    wide = residual is not None and residual.dtype != torch.float32
    if hidden.dtype not in _STORAGE or wide:
        return naive.naive_merge_tokens(hidden, residual, size, keep, source, destination)
    size = None if size is None else size.float()
    merged, new_size = _merge(hidden, residual, size, keep, source, destination)
    return merged, new_size


def _match_cpu(
    metric: Tensor, r: int, class_index: Tensor | None, index: int, exact: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    metric = _rows(metric)
    class_index = None if class_index is None else class_index.long().contiguous()
    outputs = _match_fake(metric, r, class_index, index, exact)
    keep, source, destination, place = outputs
    fields = [*metric.shape, r, metric.data_ptr(), *metric.stride()[:2], build.pointer(class_index), index]
    fields += [place.data_ptr() if exact else 0, keep.data_ptr(), source.data_ptr(), destination.data_ptr()]
    build.call(f"rmeeto_match{build.suffix(metric.dtype)}", fields)
    return outputs


def _match_fake(
    metric: Tensor, r: int, class_index: Tensor | None, index: int, exact: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def long(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.long, device=metric.device)

    batch, num_tokens, _ = metric.shape
    return long(batch, num_tokens - r), long(batch, r), long(batch, r), long(batch if exact else 0)


def _merge_cpu(
    hidden: Tensor,
    residual: Tensor | None,
    size: Tensor | None,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
) -> tuple[Tensor, Tensor]:
    hidden = _rows(hidden)
    residual = None if residual is None else _rows(residual)
    merged, new_size = _merge_fake(hidden, residual, size, keep, source, destination)
    strides = (0, 0) if residual is None else residual.stride()[:2]
    fields = [*hidden.shape, source.shape[1], hidden.data_ptr(), *hidden.stride()[:2]]
    fields += [build.pointer(residual), *strides]
    _call("forward", fields, size, keep, source, destination, merged, new_size, (hidden.dtype, merged.dtype))
    return merged, new_size


def _merge_fake(
    hidden: Tensor,
    residual: Tensor | None,
    size: Tensor | None,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
) -> tuple[Tensor, Tensor]:
    dtype = hidden.dtype if residual is None else torch.float32
    batch, kept = keep.shape
    merged = torch.empty((batch, kept, hidden.shape[2]), dtype=dtype, device=hidden.device)
    return merged, torch.empty((batch, kept, 1), dtype=torch.float32, device=hidden.device)


def _merge_backward_cpu(
    dmerged: Tensor,
    size: Tensor | None,
    new_size: Tensor,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
    hidden_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    dmerged = dmerged.contiguous()
    dhidden, dresidual = _merge_backward_fake(
        dmerged, size, new_size, keep, source, destination, hidden_dtype
    )
    fields = [*dhidden.shape, source.shape[1], *[0] * 6]
    gradients = (dmerged, dhidden, dresidual)
    dtypes = (hidden_dtype, dmerged.dtype)
    _call("backward", fields, size, keep, source, destination, None, new_size, dtypes, *gradients)
    return dhidden, dresidual


def _merge_backward_fake(
    dmerged: Tensor,
    size: Tensor | None,
    new_size: Tensor,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
    hidden_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    batch, kept, channels = dmerged.shape
    shape = (batch, kept + source.shape[1], channels)
    dhidden = torch.empty(shape, dtype=hidden_dtype, device=dmerged.device)
    return dhidden, torch.empty(shape, dtype=torch.float32, device=dmerged.device)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    hidden, residual, size, keep, source, destination = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.hidden_dtype, ctx.has_residual = hidden.dtype, residual is not None
    ctx.save_for_backward(size, output[1], keep, source, destination)


def _merge_backward(ctx: Any, dmerged: Tensor, _: Tensor) -> tuple:
    dhidden, dresidual = _merge_backward_operator(dmerged, *ctx.saved_tensors, ctx.hidden_dtype)
    return dhidden, dresidual if ctx.has_residual else None, None, None, None, None


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(
    name: str,
    fields: list[int],
    size: Tensor | None,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
    merged: Tensor | None,
    new_size: Tensor,
    dtypes: tuple[torch.dtype, torch.dtype],
    *gradients: Tensor,
) -> None:
    """Pack struct Merge of csrc/merge.cpp and run the kernel."""
    size = None if size is None else size.contiguous()
    keep, source, destination = (tensor.contiguous() for tensor in (keep, source, destination))
    fields += [
        build.pointer(tensor) for tensor in (size, keep, source, destination, merged, new_size, *gradients)
    ]
    fields += [0] * (3 - len(gradients))
    build.call(f"rmeeto_merge_{name}{build.suffix(*dtypes)}", fields)


_match = operator(
    "match_tokens",
    "(Tensor metric, SymInt r, Tensor? class_index, SymInt index, bool exact) -> (Tensor, Tensor, Tensor, Tensor)",
    _match_cpu,
    _match_fake,
)
_merge = operator(
    "merge_tokens",
    "(Tensor hidden, Tensor? residual, Tensor? size, Tensor keep, Tensor source, Tensor destination) "
    "-> (Tensor, Tensor)",
    _merge_cpu,
    _merge_fake,
    _setup_context,
    _merge_backward,
)
_merge_backward_operator = operator(
    "merge_tokens_backward",
    "(Tensor dmerged, Tensor? size, Tensor new_size, Tensor keep, Tensor source, Tensor destination, "
    "ScalarType hidden_dtype) -> (Tensor, Tensor)",
    _merge_backward_cpu,
    _merge_backward_fake,
)
