"""The operators' cases: their inputs as the models hand them over, their definitions, and who computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity import Case
from rmeeto.merge import MergePlan, Tokens, match, merge_wavg
from rmeeto.ops import Direction
from rmeeto.ops.add_norm import ADD_NORM
from rmeeto.ops.add_norm.naive import naive_add_rms_norm
from rmeeto.ops.backend import Operator
from rmeeto.ops.conv1d import CONV1D
from rmeeto.ops.conv1d.naive import naive_bidirectional_conv1d
from rmeeto.ops.selective_scan import BIDIRECTIONAL, SCAN
from rmeeto.ops.selective_scan.naive import naive_bidirectional_scan, naive_selective_scan
from rmeeto.ops.token_merge import MATCH, MERGE
from rmeeto.ops.token_merge.naive import naive_match_tokens, naive_merge_tokens

STATES, RANK, KERNEL = 16, 12, 4
SCANS = ((64, 128, 65), (8, 384, 197), (4, 768, 197))  # (B, D, L)
TOKENS = ((8, 197, 192), (64, 197, 192))  # (B, L, C)
QUICK_SCANS, QUICK_TOKENS = ((2, 16, 9),), ((2, 21, 16),)
R, QUICK_R = 11, 4
RELEASED = "two merges"  # the released code's arithmetic


def cases(device: torch.device, dtype: torch.dtype, quick: bool = False) -> Iterator[Case]:
    """Every operator at the sizes of the models."""
    scans, tokens, r = (QUICK_SCANS, QUICK_TOKENS, QUICK_R) if quick else (SCANS, TOKENS, R)
    for shape in scans:
        yield scan(shape, device, dtype)
    batch, channels, length = middle = scans[len(scans) // 2]
    yield bidirectional(middle, device, dtype)
    yield convolution((batch, length, channels), device, dtype)
    for shape in tokens:
        yield add_norm(shape, device, dtype)
        yield matching(shape, r, device, dtype)
        yield merging(shape, r, device, dtype)


def backends(operator: Operator, device: torch.device) -> dict[str, Callable]:
    """The operator's implementations that run here, but for the definition."""
    states = operator.explain(device.type)
    names = [name for name, state in states if state in ("chosen", "available") and name != "naive"]
    return {name: operator.implementation(device.type, name) for name in names}


def scan(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Case:
    """One direction with softplus, D and gate, token-major."""
    batch, channels, length = shape
    inputs = _direction(shape, device, dtype) | {"z": _halves((batch, length, channels), device, dtype)[1]}

    def ordered(
        way: Callable, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Tensor
    ) -> Tensor:
        D, bias, z = rest
        return way(u, delta, A, B, C, D, z, bias)

    return Case(
        what="scan",
        shape=tuple(shape),
        inputs=inputs,
        ways={name: partial(ordered, way) for name, way in backends(SCAN, device).items()},
        reference=partial(ordered, naive_selective_scan),
        dtype=dtype,
        traffic=_bytes(inputs) + _bytes({"out": inputs["u"]}),
        exponentials=batch * length * channels * STATES,
    )


def bidirectional(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Case:
    """Both directions and one gate."""
    batch, channels, length = shape
    inputs = _direction(shape, device, dtype)
    inputs |= {f"{name}_b": tensor for name, tensor in _direction(shape, device, dtype, seed=1).items()}
    inputs["z"] = _halves((batch, length, channels), device, dtype)[1]
    each = (len(inputs) - 1) // 2

    def ordered(way: Callable, *tensors: Tensor) -> Tensor:
        return way(Direction(*tensors[:each]), Direction(*tensors[each:-1]), tensors[-1], True)

    return Case(
        what="bidirectional scan",
        shape=tuple(shape),
        inputs=inputs,
        ways={name: partial(ordered, way) for name, way in backends(BIDIRECTIONAL, device).items()},
        reference=partial(ordered, naive_bidirectional_scan),
        dtype=dtype,
        traffic=_bytes(inputs) + _bytes({"out": inputs["u"]}),
        exponentials=2 * batch * length * channels * STATES,
    )


def convolution(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Case:
    """Both directions' depthwise convolution of one input."""
    draw = _draw(device, 2)
    x = _halves(shape, device, dtype)[0]
    inputs = {"x": x} | {
        f"{name}{suffix}": draw(shape[-1], *more)
        for suffix in ("", "_b")
        for name, more in (("weight", (1, KERNEL)), ("bias", ()))
    }
    return Case(
        what="conv",
        shape=tuple(shape),
        inputs=inputs,
        ways=dict(backends(CONV1D, device)),
        reference=naive_bidirectional_conv1d,
        dtype=dtype,
        traffic=3 * _bytes({"x": x}),
    )


def add_norm(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Case:
    """Residual add and RMS norm."""
    draw = _draw(device, 3)
    hidden, residual = draw(*shape).to(dtype), draw(*shape)
    inputs = {"hidden": hidden, "residual": residual, "weight": 1 + 0.1 * draw(shape[-1])}
    return Case(
        what="add_norm",
        shape=tuple(shape),
        inputs=inputs,
        ways=dict(backends(ADD_NORM, device)),
        reference=naive_add_rms_norm,
        dtype=dtype,
        traffic=_bytes({"hidden": hidden, "residual": residual, "sum": residual, "normed": residual}),
    )


def matching(shape: Sequence[int], r: int, device: torch.device, dtype: torch.dtype) -> Case:
    """Which tokens merge into which."""
    middle = (shape[1] - 1) // 2
    metric = _draw(device, 4)(*shape).to(dtype)

    def ordered(way: Callable, metric: Tensor) -> Any:
        return way(metric, r, Tokens(shape[1], middle))

    return Case(
        what="match",
        shape=tuple(shape),
        inputs={"metric": metric},
        ways={name: partial(ordered, way) for name, way in backends(MATCH, device).items()},
        reference=partial(ordered, naive_match_tokens),
        dtype=dtype,
        result=_matched,
        traffic=_bytes({"metric": metric}),
        macs=_match_macs(shape),
        differentiable=False,
    )


def merging(shape: Sequence[int], r: int, device: torch.device, dtype: torch.dtype) -> Case:
    """A block's whole merge: match, then hidden + residual + size; beside it, the released code's arithmetic."""
    batch, length, _ = shape
    middle = (length - 1) // 2
    draw = _draw(device, 5)
    inputs = {"hidden": draw(*shape).to(dtype), "residual": draw(*shape)}
    inputs["size"] = 1 + draw(batch, length, 1).abs().round()

    def once(matcher: Callable, merger: Callable, hidden: Tensor, residual: Tensor, size: Tensor) -> Any:
        return merger(hidden, residual, size, matcher(hidden.detach(), r, Tokens(length, middle)))

    def twice(hidden: Tensor, residual: Tensor, size: Tensor) -> Any:
        plan = match(hidden.detach(), r, middle)
        merged, new_size = merge_wavg(plan, hidden, size)
        return merged, merge_wavg(plan, residual, size)[0], new_size

    merge_of = backends(MERGE, device)
    ways = {name: partial(once, way, merge_of[name]) for name, way in backends(MATCH, device).items()}
    written = (length - r) / length * _bytes({"sum": inputs["residual"], "size": inputs["size"]})
    return Case(
        what="merge",
        shape=tuple(shape),
        inputs=inputs,
        ways={**ways, RELEASED: twice},
        reference=partial(once, naive_match_tokens, naive_merge_tokens),
        dtype=dtype,
        result=_merged,
        traffic=round(_bytes(inputs) + written),
        macs=_match_macs(shape),
        constant=("size",),
    )


def _matched(got: MergePlan, metric: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs' similarities, best first, and whether each sample's plan holds every token once and in order.

    Two pairs that are equally similar to within rounding may change places; one less similar may not.
    """
    keep, source, destination, index = got.keep, got.source, got.destination, got.class_index
    unit = torch.nn.functional.normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)

    def take(positions: Tensor) -> Tensor:
        return unit.gather(1, positions.unsqueeze(-1).expand(-1, -1, unit.shape[-1]))

    similarity = (take(source) * take(keep.gather(1, destination))).sum(-1)
    everyone = torch.cat([keep, source], dim=1).sort(dim=1).values
    patches = torch.cat([keep[:, :index], keep[:, index + 1 :]], dim=1)
    complete = (everyone == torch.arange(metric.shape[1], device=metric.device)).all(1)
    return similarity, (complete & (patches.diff(dim=1) > 0).all(1)).float()


def _merged(got: tuple, *_: Tensor) -> tuple[Tensor, Tensor]:
    *parts, size = got
    return sum(parts[1:], parts[0]), size


def _match_macs(shape: Sequence[int]) -> int:
    batch, length, channels = shape
    half = (length - 1) // 2
    return batch * half * (length - 1 - half) * channels


def _draw(device: torch.device, seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator).to(device)


def _halves(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x and z: views of in_proj's output."""
    batch, length, channels = shape
    return _draw(device, 1)(batch, length, 2 * channels).to(dtype).chunk(2, dim=-1)


def _direction(
    shape: Sequence[int], device: torch.device, dtype: torch.dtype, seed: int = 0
) -> dict[str, Tensor]:
    """u, delta, A, B, C, D, bias of a direction; B and C are views of x_proj's output."""
    batch, channels, length = shape
    draw = _draw(device, 10 + seed)
    projected = draw(batch, length, RANK + 2 * STATES).to(dtype)
    return {
        "u": draw(batch, length, channels).to(dtype),
        "delta": draw(batch, length, channels).mul(0.5).to(dtype),
        "A": -torch.exp(0.5 * draw(channels, STATES) + 1),
        "B": projected[..., RANK : RANK + STATES],
        "C": projected[..., RANK + STATES :],
        "D": draw(channels),
        "bias": draw(channels) - 2,
    }


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
