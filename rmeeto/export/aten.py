"""Operators of torch that its ONNX export does not write, or not rightly."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from onnxscript import opset18 as op

WIDE = 64  # channels from which on a product of its own costs less than a copy


def table() -> dict[Any, Callable]:
    """Operators that torch does not translate, or not rightly."""
    aten = torch.ops.aten
    return {
        aten.sort.stable: _stable_sort,
        aten._cdist_forward.default: _cdist,
        aten.searchsorted.Tensor: _searchsorted,
        aten.scatter_reduce.two: _scatter_reduce,
        aten.split_with_sizes.default: _split,
        aten.split.Tensor: _split,
    }


def _stable_sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """``torch.sort(stable=True)`` by ONNX's TopK, whose ties go to the lower index as well."""
    length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)


def _cdist(a: Any, b: Any, p: float, compute_mode: int | None = None) -> Any:
    """``torch.cdist`` for the l1 and l2 distances."""
    difference = op.Sub(op.Unsqueeze(a, op.Constant(value_ints=[-2])), op.Unsqueeze(b, op.Constant(value_ints=[-3])))
    reduce = {1.0: op.ReduceL1, 2.0: op.ReduceL2}[p]
    return reduce(difference, op.Constant(value_ints=[-1]), keepdims=0)


def _searchsorted(ordered: Any, values: Any, **_: Any) -> Any:
    """``torch.searchsorted`` from the left: how many of the (B, N) entries lie below each of the (B, V) values."""
    below = op.Less(
        op.Unsqueeze(ordered, op.Constant(value_ints=[1])), op.Unsqueeze(values, op.Constant(value_ints=[2]))
    )
    return op.ReduceSum(op.Cast(below, to=7), op.Constant(value_ints=[2]), keepdims=0)  # 7: int64


def _scatter_reduce(x: Any, dim: int, index: Any, src: Any, reduce: str, include_self: bool = True) -> Any:
    """``torch.scatter_reduce`` onto what is there, a mean included, which torch's own translation gets wrong."""
    assert include_self, "nothing in this library reduces without what is there"
    if reduce != "mean":
        reduction = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}[reduce]
        return op.ScatterElements(x, index, src, axis=dim, reduction=reduction)
    total = op.ScatterElements(x, index, src, axis=dim, reduction="add")
    one = op.CastLike(op.Constant(value_float=1.0), x)
    ones, others = op.Expand(one, op.Shape(x)), op.Expand(one, op.Shape(src))
    return op.Div(total, op.ScatterElements(ones, index, others, axis=dim, reduction="add"))


def _split(x: Any, sizes: int | list[int], dim: int = 0) -> tuple[Any, ...]:
    """``torch.split`` as slices; torch writes a sequence of tensors and takes each out of it.

    Large parts of a linear layer's output are products of their own with parts of the weight, which copy nothing.
    """
    axis, product, factors = dim % len(x.shape), x.producer(), ()
    if axis == len(x.shape) - 1 and product is not None and product.op_type == "MatMul":
        factors = product.inputs
    if isinstance(sizes, int):
        whole, rest = divmod(x.shape[dim], sizes)
        sizes = [sizes] * whole + [rest] * (rest > 0)
    ends = list(accumulate(sizes))
    ranges = [(op.Constant(value_ints=[end - n]), op.Constant(value_ints=[end])) for n, end in zip(sizes, ends)]
    if factors and min(sizes) >= WIDE and _is_weight(factors[1]):
        last = op.Constant(value_ints=[1])
        return tuple(op.MatMul(factors[0], op.Slice(factors[1], begin, end, last)) for begin, end in ranges)
    return tuple(op.Slice(x, begin, end, op.Constant(value_ints=[axis])) for begin, end in ranges)


def _is_weight(x: Any) -> bool:
    """Whether a value is the transpose of a matrix among the model's parameters."""
    node = x.producer()
    if node is None or node.op_type != "Transpose":
        return False
    (given,) = node.inputs
    return given.producer() is None and given.shape is not None and len(given.shape) == 2
