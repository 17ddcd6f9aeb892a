"""This library's operators as ONNX nodes.

B batch, L tokens, C and D channels, N states, G directions. A scan is an ONNX Scan over tokens whose loop holds the
recurrence alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18 as op

from rmeeto.export.recurrence import recurrence
from rmeeto.ops.selective_scan.direction import Direction, unflatten

_FIRST = -(1 << 62)  # before any token
# States of a sample, both directions, above which those of a batch leave a core's cache: then each direction is scanned
# by itself, which below it costs more calls than it saves (Vim-Ti has 12,288, Vim-S twice as many; a batch of 8).
CACHED = 16384


def table() -> dict[Any, Callable]:
    """How each operator is written, as torch.onnx.export takes it."""
    ours = torch.ops.rmeeto
    return {
        ours.scan.default: _scan,
        ours.conv1d.default: _conv1d,
        ours.add_rms_norm.default: _add_rms_norm,
        ours.match_tokens.default: _match_tokens,
        ours.merge_tokens.default: _merge_tokens,
    }


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _float(value: float) -> Any:
    return op.Constant(value_float=value)


def _backwards(x: Any, axis: int) -> Any:
    return op.Slice(x, _ints(-1), _ints(_FIRST), _ints(axis), _ints(-1))


def _swapped(x: Any) -> Any:
    """Samples and tokens, the first two of three axes, swapped."""
    return op.Transpose(x, perm=[1, 0, 2])


def _silu(x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x))


def _scan(*arguments: Any) -> tuple[Any, Any]:
    """Directions that stay in a core's cache together are one Scan, side by side; else each is one of its own."""
    *tensors, softplus, reverse, average, _ = arguments
    directions, z = unflatten(tensors)
    G, (D, N) = len(directions), directions[0].A.shape
    parts = [range(G)] if G * D * N <= CACHED else [range(k, k + 1) for k in range(G)]
    flips = [reverse or k == 1 for k in range(G)]
    scale = _float(0.5 if average else 1.0)  # C and D are small: y would be a pass over memory
    ys = []
    for part in parts:
        y = _side_by_side([directions[k] for k in part], [flips[k] for k in part], softplus, scale)
        ys += [
            op.Slice(y, _ints(-1, D * i), _ints(_FIRST, D * (i + 1)), _ints(0, 2), _ints(-1, 1))
            if flips[k]
            else op.Slice(y, _ints(D * i), _ints(D * (i + 1)), _ints(2))
            for i, k in enumerate(part)
        ]
    y = _swapped(ys[0] if G == 1 else op.Add(*ys))
    for d in directions:
        if d.D is not None:
            y = op.Add(y, op.Mul(d.u, op.Mul(d.D, scale)))
    if z is not None:
        y = op.Mul(y, _silu(z))
    return y, op.ConstantOfShape(_ints(0))  # no states: only a backward pass would read them


def _side_by_side(directions: Sequence[Direction], flips: Sequence[bool], softplus: bool, scale: Any) -> Any:
    """C h of G directions, without D and the gate: (L, B, G D), each from the token that it starts with."""

    G, (D, N) = len(directions), directions[0].A.shape

    def steps(name: str) -> Any:
        """(B, L, X) of each direction -> (L, B, G X)."""
        given = [_swapped(getattr(direction, name)) for direction in directions]
        return op.Concat(*(_backwards(x, 0) if flip else x for x, flip in zip(given, flips)), axis=2)

    def shaped(x: Any, *shape: int) -> Any:
        """(L, B, ..) -> (L, B, G, *shape)."""
        return op.Reshape(x, _ints(0, 0, G, *shape))

    def vectors(name: str) -> Any:
        """(D,) of each direction -> (G D,)."""
        return op.Concat(*(getattr(direction, name) for direction in directions), axis=0)

    delta, has_bias = steps("delta"), directions[0].delta_bias is not None
    if directions[0].dt_weight is not None:
        weight = op.Concat(*(_placed(d.dt_weight, k * D, G * D) for k, d in enumerate(directions)), axis=0)
        if has_bias:  # as the weight of a feature that is always 1
            weight = op.Concat(weight, op.Unsqueeze(vectors("delta_bias"), _ints(0)), axis=0)
            delta = op.Pad(delta, _ints(0, 0, 0, 0, 0, 1), _float(1.0))
        delta = op.MatMul(delta, weight)
    elif has_bias:
        delta = op.Add(delta, vectors("delta_bias"))
    if softplus:  # several times as fast as the runtime's own; beyond 20 it is its argument to the last bit
        low = op.Min(delta, _float(20.0))
        delta = op.Max(delta, op.Log(op.Add(op.Exp(low), _float(1.0))))
    w = op.Mul(delta, steps("u"))
    A = op.Concat(*(op.Unsqueeze(op.Transpose(d.A, perm=[1, 0]), _ints(0)) for d in directions), axis=0)
    B, C = shaped(steps("B"), N, 1), op.Mul(shaped(steps("C"), 1, N), scale)
    y = recurrence(shaped(delta, 1, D), shaped(w, 1, D), A, B, C)
    return op.Reshape(y, _ints(0, 0, G * D))


def _placed(weight: Any, begin: int, total: int) -> Any:
    """(D, R) -> (R, total): the transposed weight at a column, zeros beside it."""
    end = begin + weight.shape[0]
    return op.Pad(op.Transpose(weight, perm=[1, 0]), _ints(0, begin, 0, total - end))


def _conv1d(x: Any, weight: Any, bias: Any, weight_b: Any, bias_b: Any) -> tuple[Any, Any]:
    channels, _, kernel = weight.shape
    row = _ints(1)
    # As pictures of one row, whose channels runtimes compute side by side.
    x = op.Transpose(op.Unsqueeze(x, row), perm=[0, 3, 1, 2])

    def side(weight: Any, bias: Any, before: int, after: int) -> Any:
        y = op.Conv(x, op.Unsqueeze(weight, _ints(2)), bias, group=channels, pads=[0, before, 0, after])
        return _silu(op.Squeeze(op.Transpose(y, perm=[0, 2, 3, 1]), row))

    return side(weight, bias, kernel - 1, 0), side(_backwards(weight_b, 2), bias_b, 0, kernel - 1)


def _add_rms_norm(hidden: Any, residual: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    total = hidden if residual is None else op.Add(hidden, residual)
    square = op.ReduceMean(op.Pow(total, _float(2.0)), _ints(-1))
    normed = op.Div(total, op.Sqrt(op.Add(square, _float(eps))))
    return op.Mul(normed, weight), op.Identity(total)


def _rows(x: Any, index: Any) -> Any:
    """(B, L, ...) at (B, n) -> (B, n, ...)."""
    return op.GatherND(x, op.Unsqueeze(index, _ints(2)), batch_dims=1)


def _match_tokens(metric: Any, r: int, class_index: Any, index: int, exact: bool) -> tuple[Any, Any, Any, Any]:
    """As `rmeeto.merge.rules.exact` and `Tokens.plan` in order: P patches, of which the even ones may go."""
    num_tokens = metric.shape[1]
    num_patches = num_tokens - 1
    batch = op.Shape(metric, start=0, end=1)

    def row(values: Sequence[int]) -> Any:
        return op.Unsqueeze(_ints(*values), _ints(0))

    def each(values: Any, n: int) -> Any:  # (1 or B, n) -> (B, n)
        return op.Expand(values, op.Concat(batch, _ints(n), axis=0))

    def positions(patches: Any) -> Any:  # of patches among the tokens
        return op.Add(patches, op.Cast(op.GreaterOrEqual(patches, aside), to=7))

    aside = row([index]) if class_index is None else op.Unsqueeze(class_index, _ints(1))
    norm = op.Max(op.ReduceL2(metric, _ints(-1)), _float(1e-12))
    metric = op.Div(metric, norm)
    even, odd = range(0, num_patches, 2), range(1, num_patches, 2)
    sources = _rows(metric, each(positions(row(even)), len(even)))
    destinations = _rows(metric, each(positions(row(odd)), len(odd)))
    scores = op.MatMul(sources, op.Transpose(destinations, perm=[0, 2, 1]))
    score, pick = op.ReduceMax(scores, _ints(-1), keepdims=0), op.ArgMax(scores, axis=-1, keepdims=0)
    _, first = op.TopK(score, _ints(r), axis=1)  # of equal scores the lower index comes first
    two = _ints(2)
    source = op.Mul(first, two)
    destination = op.Add(op.Mul(op.GatherElements(pick, first, axis=1), two), _ints(1))

    patch = each(row(range(num_patches)), num_patches)
    one = op.Expand(_ints(1), op.Shape(source))
    gone = op.ScatterElements(op.Sub(patch, patch), source, one, axis=1)
    # Those that stay are the lowest of the patches, among which those that go count as high.
    stay = op.Add(patch, op.Mul(gone, _ints(num_patches)))
    kept, _ = op.TopK(stay, _ints(num_patches - r), axis=1, largest=0)
    place = op.GatherElements(op.Sub(patch, op.CumSum(gone, _ints(1))), destination, axis=1)
    if exact:
        before = op.ReduceSum(op.Cast(op.Less(source, aside), to=7), _ints(1))
        at = op.Sub(each(aside, 1), before)
    else:
        at = op.Div(op.Mul(aside, _ints(num_tokens - r)), _ints(num_tokens))
    out = row(range(num_tokens - r))
    behind = op.Cast(op.Greater(out, at), to=7)
    padded = op.Concat(positions(kept), each(aside, 1), axis=1)
    keep = op.GatherElements(padded, each(op.Sub(out, behind), num_tokens - r), axis=1)
    keep = op.Where(op.Equal(out, at), aside, keep)
    place = op.Add(place, op.Cast(op.GreaterOrEqual(place, at), to=7))
    said = op.Squeeze(at, _ints(1)) if exact else op.Shape(metric, start=0, end=0)
    return keep, positions(source), place, said


def _merge_tokens(hidden: Any, residual: Any, size: Any, keep: Any, source: Any, destination: Any) -> tuple[Any, Any]:
    """A product with a matrix of zeros and ones adds those that go to those that stay."""
    x = hidden if residual is None else op.Add(residual, hidden)
    kept = keep.shape[1]
    into = op.Equal(op.Unsqueeze(_ints(*range(kept)), _ints(0, 2)), op.Unsqueeze(destination, _ints(1)))
    into = op.Cast(into, to=1)  # (B, kept, r)
    if size is None:
        new_size = op.Add(op.ReduceSum(into, _ints(-1)), _float(1.0))
    else:
        x = op.Mul(x, size)
        new_size = op.Add(_rows(size, keep), op.MatMul(into, _rows(size, source)))
    total = op.Add(_rows(x, keep), op.MatMul(into, _rows(x, source)))
    return op.Div(total, new_size), new_size
