"""Matching and merging on the C++ kernels, registered as ``rmeeto::match_tokens`` and ``rmeeto::merge_tokens``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rmeeto.ops import build
from rmeeto.ops.cpp_support import STORAGE, Task, integers, pointers, rows, run, spread, suffix
from rmeeto.ops.token_merge.naive import check_range
from rmeeto.ops.token_merge.registered import (
    match_fake,
    matching,
    merge_backward_fake,
    merge_fake,
    merging,
)


class MatchStruct(Task):
    """struct Match of csrc/merge.cpp."""

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

    _fields_ = [
        *integers("batch", "tokens", "channels", "r"),
        *pointers("hidden"),
        *integers("hidden_batch", "hidden_token"),
        *pointers("residual"),
        *integers("residual_batch", "residual_token"),
        *pointers("size", "keep", "source", "destination", "merged", "new_size"),
        *pointers("dmerged", "dhidden", "dresidual"),
    ]


def load() -> tuple[Callable, Callable]:
    """`match_tokens` and `merge_tokens` for tensors on the CPU.

    Raises:
        BackendUnavailable: the kernels cannot be built here.
    """
    build.library()
    return match_tokens, merge_tokens


def _match(
    metric: Tensor, r: int, class_index: Tensor | None, index: int, exact: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if class_index is not None:
        check_range(class_index, metric.shape[1])  # the kernel writes there
        class_index = class_index.long().contiguous()
    outputs = keep, source, destination, place = match_fake(metric, r, class_index, index, exact)
    batch, tokens, channels = metric.shape
    task = MatchStruct(
        batch=batch,
        tokens=tokens,
        channels=channels,
        r=r,
        aside=class_index,
        aside_all=index,
        exact_place=place if exact else None,
        keep=keep,
        source=source,
        destination=destination,
        **spread("metric", rows(metric)),
    )
    run(f"rmeeto_match{suffix(metric.dtype)}", task)
    return outputs


def _merge(
    hidden: Tensor,
    residual: Tensor | None,
    size: Tensor | None,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
) -> tuple[Tensor, Tensor]:
    merged, new_size = merge_fake(hidden, residual, size, keep, source, destination)
    _run(
        f"forward{suffix(hidden.dtype, merged.dtype)}",
        hidden.shape,
        (size, keep, source, destination),
        **spread("hidden", rows(hidden)),
        **spread("residual", None if residual is None else rows(residual)),
        merged=merged,
        new_size=new_size,
    )
    return merged, new_size


def _merge_backward(
    dmerged: Tensor,
    size: Tensor | None,
    new_size: Tensor,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
    dtype: torch.dtype,
    has_residual: bool,
) -> tuple[Tensor, Tensor]:
    dhidden, dresidual = merge_backward_fake(
        dmerged, size, new_size, keep, source, destination, dtype, has_residual
    )
    _run(
        f"backward{suffix(dtype, dmerged.dtype)}",
        dhidden.shape,
        (size, keep, source, destination),
        new_size=new_size,
        dmerged=dmerged.contiguous(),
        dhidden=dhidden,
        dresidual=dresidual if has_residual else None,
    )
    return dhidden, dresidual


def _run(
    name: str, shape: torch.Size, plan: tuple[Tensor | None, Tensor, Tensor, Tensor], **fields: Any
) -> None:
    """Run a kernel on tokens of a shape (B, L, C); the plan with the tokens' sizes before it."""
    batch, tokens, channels = shape
    size, keep, source, destination = (None if tensor is None else tensor.contiguous() for tensor in plan)
    task = MergeStruct(
        batch=batch,
        tokens=tokens,
        channels=channels,
        r=tokens - plan[1].shape[1],
        size=size,
        keep=keep,
        source=source,
        destination=destination,
        **fields,
    )
    run(f"rmeeto_merge_{name}", task)


match_tokens = matching("match_tokens", _match, STORAGE)
merge_tokens = merging("merge_tokens", _merge, _merge_backward, STORAGE)
