"""Matching and merging on the C++ kernels, registered as ``rmeeto::match_tokens`` and ``rmeeto::merge_tokens``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rmeeto.ops import build
from rmeeto.ops.token_merge.naive import check_range
from rmeeto.ops.token_merge.registered import (
    match_fake,
    matching,
    merge_backward_fake,
    merge_fake,
    merging,
)

_STORAGE = (torch.float32, torch.bfloat16)


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
    metric = _rows(metric)
    if class_index is not None:
        check_range(class_index, metric.shape[1])  # the kernel writes there
        class_index = class_index.long().contiguous()
    outputs = keep, source, destination, place = match_fake(metric, r, class_index, index, exact)
    fields = [*metric.shape, r, metric.data_ptr(), *metric.stride()[:2], build.pointer(class_index), index]
    fields += [place.data_ptr() if exact else 0, keep.data_ptr(), source.data_ptr(), destination.data_ptr()]
    build.call(f"rmeeto_match{build.suffix(metric.dtype)}", fields)
    return outputs


def _merge(
    hidden: Tensor,
    residual: Tensor | None,
    size: Tensor | None,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
) -> tuple[Tensor, Tensor]:
    hidden = _rows(hidden)
    residual = None if residual is None else _rows(residual)
    merged, new_size = merge_fake(hidden, residual, size, keep, source, destination)
    strides = (0, 0) if residual is None else residual.stride()[:2]
    fields = [*hidden.shape, source.shape[1], hidden.data_ptr(), *hidden.stride()[:2]]
    fields += [build.pointer(residual), *strides]
    _call("forward", fields, size, keep, source, destination, merged, new_size, (hidden.dtype, merged.dtype))
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
    dmerged = dmerged.contiguous()
    dhidden, dresidual = merge_backward_fake(
        dmerged, size, new_size, keep, source, destination, dtype, has_residual
    )
    fields = [*dhidden.shape, source.shape[1], *[0] * 6]
    gradients = (dmerged, dhidden, dresidual if has_residual else None)
    dtypes = (dtype, dmerged.dtype)
    _call("backward", fields, size, keep, source, destination, None, new_size, dtypes, *gradients)
    return dhidden, dresidual


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
    *gradients: Tensor | None,
) -> None:
    """Pack struct Merge of csrc/merge.cpp and run the kernel."""
    size = None if size is None else size.contiguous()
    keep, source, destination = (tensor.contiguous() for tensor in (keep, source, destination))
    fields += [
        build.pointer(tensor) for tensor in (size, keep, source, destination, merged, new_size, *gradients)
    ]
    fields += [0] * (3 - len(gradients))
    build.call(f"rmeeto_merge_{name}{build.suffix(*dtypes)}", fields)


match_tokens = matching("match_tokens", _match, _STORAGE)
merge_tokens = merging("merge_tokens", _merge, _merge_backward, _STORAGE)
