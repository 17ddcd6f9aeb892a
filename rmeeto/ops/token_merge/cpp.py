"""Matching and merging on the C++ kernels, registered as ``rmeeto::match_tokens`` and ``rmeeto::merge_tokens``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmeeto.ops.cpp_support import STORAGE, Task, integers, pointer, pointers, rows, run, spread, suffix
from rmeeto.ops.token_merge.library import (
    match_fake,
    matching,
    merge_backward_fake,
    merge_fake,
    merging,
)
from rmeeto.ops.token_merge.naive import check_range


class MatchStruct(Task):
    """struct Match of csrc/merge.cpp."""

    __slots__ = ()
    _fields_ = [
        *integers("batch", "tokens", "channels", "r"),
        *pointers("metric"),
        *integers("metric_batch", "metric_token"),
        *pointers("aside"),
        *integers("aside_all"),
        *pointers("exact_place", "keep", "source", "destination"),
    ]


class MergeStruct(Task):
    """struct Merge of csrc/merge.cpp."""

    __slots__ = ()
    _fields_ = [
        *integers("batch", "tokens", "channels", "r"),
        *pointers("hidden"),
        *integers("hidden_batch", "hidden_token"),
        *pointers("residual"),
        *integers("residual_batch", "residual_token"),
        *pointers("size", "keep", "source", "destination", "merged", "new_size"),
        *pointers("dmerged", "dhidden", "dresidual"),
    ]


def _match(
    metric: Tensor, r: int, class_index: Tensor | None, index: int, exact: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if class_index is not None:
        check_range(class_index, metric.shape[1])  # the kernel writes there
        class_index = class_index.long().contiguous()
    outputs = keep, source, destination, place = match_fake(metric, r, class_index, index, exact)
    metric = rows(metric)
    task = MatchStruct()
    task.batch, task.tokens, task.channels = metric.shape
    task.r = r
    task.metric, task.metric_batch, task.metric_token = spread(metric)
    task.aside, task.aside_all = pointer(class_index), index
    task.exact_place = place.data_ptr() if exact else 0
    task.keep, task.source, task.destination = keep.data_ptr(), source.data_ptr(), destination.data_ptr()
    run(f"rmeeto_match{suffix(metric.dtype)}", task)
    return outputs


def _merge(hidden: Tensor, residual: Tensor | None, size: Tensor | None, *plan: Tensor) -> tuple[Tensor, Tensor]:
    merged, new_size = merge_fake(hidden, residual, size, *plan)
    hidden = rows(hidden)
    residual = None if residual is None else rows(residual)
    task = MergeStruct()
    task.hidden, task.hidden_batch, task.hidden_token = spread(hidden)
    task.residual, task.residual_batch, task.residual_token = spread(residual)
    task.merged, task.new_size = merged.data_ptr(), new_size.data_ptr()
    _run(f"forward{suffix(hidden.dtype, merged.dtype)}", task, hidden.shape, size, *plan)
    return merged, new_size


def _merge_backward(dmerged: Tensor, size: Tensor | None, new_size: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *plan, dtype, has_residual = arguments
    dhidden, dresidual = merge_backward_fake(dmerged, size, new_size, *arguments)
    dmerged = dmerged.contiguous()
    task = MergeStruct()
    task.new_size, task.dmerged = new_size.data_ptr(), dmerged.data_ptr()
    task.dhidden, task.dresidual = dhidden.data_ptr(), dresidual.data_ptr() if has_residual else 0
    _run(f"backward{suffix(dtype, dmerged.dtype)}", task, dhidden.shape, size, *plan)
    return dhidden, dresidual


def _run(name: str, task: MergeStruct, shape: torch.Size, size: Tensor | None, *plan: Tensor) -> None:
    """Run a kernel on tokens of a shape (B, L, C)."""
    size = None if size is None else size.contiguous()
    keep, source, destination = (positions.contiguous() for positions in plan)
    task.batch, task.tokens, task.channels = shape
    task.r = source.shape[1]
    task.size = pointer(size)
    task.keep, task.source, task.destination = keep.data_ptr(), source.data_ptr(), destination.data_ptr()
    run(f"rmeeto_merge_{name}", task)


match_tokens = matching("match_tokens", _match, STORAGE)
merge_tokens = merging("merge_tokens", _merge, _merge_backward, STORAGE)
