"""The operators' cases: their inputs as the models hand them over, their definitions, and who computes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers, timing, variants
from benchmarks.parity import Case, Refused, Verifier, as_tuple, leaves, upstream
from rmeeto.merge import MergePlan, Tokens, match, merge_wavg
from rmeeto.merge.plan import take_tokens
from rmeeto.ops import Direction
from rmeeto.ops.add_norm import ADD_NORM
from rmeeto.ops.add_norm.naive import naive_add_rms_norm
from rmeeto.ops.backend import Operator
from rmeeto.ops.conv1d import CONV1D
from rmeeto.ops.conv1d.naive import naive_bidirectional_conv1d
from rmeeto.ops.selective_scan import BIDIRECTIONAL, SCAN, bidirectional_scan
from rmeeto.ops.selective_scan.naive import naive_selective_scan
from rmeeto.ops.token_merge import MATCH, MERGE
from rmeeto.ops.token_merge.naive import naive_match_tokens, naive_merge_tokens

FORWARD, BOTH = "forward", "forward + backward"
STATES, KERNEL = 16, 4
SCANS = ((64, 128, 65), (8, 384, 197), (4, 768, 197))  # (B, D, L)
TOKENS = ((8, 197, 192), (64, 197, 192))  # (B, L, C)
GPU_SCANS = ((128, 384, 197), (128, 768, 197), (8, 768, 197))
GPU_TOKENS = ((128, 197, 192), (128, 197, 384), (8, 197, 384))
SAMPLE = 2  # images that a GPU's large cases are verified on: the definition keeps every state in float64
QUICK_SCANS, QUICK_TOKENS = ((2, 16, 9),), ((2, 21, 16),)
R, QUICK_R = 11, 4
RELEASED = "two merges"  # the released code's arithmetic


def cases(
    device: torch.device, dtype: torch.dtype, quick: bool = False, kernels: peers.Kernels | str | None = None
) -> Iterator[Case]:
    """Every operator at the sizes of the models; the kernels of a peer in their own layout, too."""
    gpu = device.type == "cuda"
    scans, tokens, r = (GPU_SCANS if gpu else SCANS), (GPU_TOKENS if gpu else TOKENS), R
    if quick:
        scans, tokens, r = QUICK_SCANS, QUICK_TOKENS, QUICK_R

    def made(make: Callable[..., Case], shape: Sequence[int], *others: Any) -> Case:
        case = make(shape, *others, device, dtype)
        if not gpu or shape[0] <= SAMPLE:
            return case
        return dataclasses.replace(case, sample=make((SAMPLE, *shape[1:]), *others, device, dtype))

    for shape in scans:
        yield made(scan, shape)
    batch, channels, length = middle = scans[len(scans) // 2]
    yield made(bidirectional, middle)
    if gpu:
        for settings in (variants.FORWARD, variants.BACKWARD):
            yield made(partial(variants.variants, settings, bidirectional), middle)
    if isinstance(kernels, peers.Kernels):
        yield made(partial(channel_major, kernels), middle)
    yield made(convolution, (batch, length, channels))
    for shape in tokens:
        yield made(add_norm, shape)
        yield made(matching, shape, r)
        yield made(merging, shape, r)


def measure(case: Case, device: torch.device, runs: int, min_seconds: float = 0.05) -> Iterator[dict[str, Any]]:
    """Rows of an operator: each way verified, and timed in turn with the others of its case."""
    try:
        yield from _measure(case, device, runs, min_seconds)
    finally:
        case.restore()


def _measure(case: Case, device: torch.device, runs: int, min_seconds: float) -> Iterator[dict[str, Any]]:
    head = {"what": case.what, "shape": case.shape}
    parity: dict[str, dict[str, float]] = {}
    sample = case.sample or case
    verifier = Verifier(sample)
    for name, way in sample.ways.items():
        try:
            parity[name] = verifier.verify(way)
        except Refused as reason:
            yield {**head, "way": name, "refused": str(reason)}
    del verifier
    for kind in ((FORWARD, BOTH) if case.differentiable else (FORWARD,)) if parity else ():
        work = (case.traffic, case.macs, case.exponentials) if kind == FORWARD else ()
        floor = timing.Floor(device, case.dtype, *work)
        calls = {name: _call(case, case.ways[name], kind) for name in parity}
        found = timing.interleave({**calls, **floor.probes}, device, runs, min_seconds, replays=True)
        for name, call in calls.items():
            row = {**head, "pass": kind, "way": name, **timing.times(found[name])}
            row |= timing.against_floor(floor.ms(found), row["median_ms"])
            yield row | {"memory_bytes": timing.peak_memory(call, device), "parity": parity[name]}


def _call(case: Case, way: Callable[..., Any], kind: str) -> Callable[[], Any]:
    if kind == FORWARD:
        inputs = [tensor.detach() for tensor in case.inputs.values()]
        return partial(torch.no_grad()(way), *inputs)
    inputs = leaves(case)
    outputs = [output for output in as_tuple(way(*inputs)) if output.requires_grad]
    return partial(_both, way, inputs, upstream(outputs, case.dtype))


def _both(way: Callable[..., Any], inputs: list[Tensor], weights: list[Tensor]) -> Any:
    outputs = [output for output in as_tuple(way(*inputs)) if output.requires_grad]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return torch.autograd.grad(outputs, wanted, weights, allow_unused=True)


def backends(operator: Operator, device: torch.device) -> dict[str, Callable]:
    """The operator's implementations that run here, but for the definition."""
    states = operator.explain(device.type)
    names = [name for name, state in states if state in ("chosen", "available") and name != "naive"]
    return {name: operator.implementation(device.type, name) for name in names}


def scan(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Case:
    """One direction with softplus, D and gate, token-major."""
    batch, channels, length = shape
    inputs = _direction(shape, device, dtype) | {"z": _halves((batch, length, channels), device, dtype)[1]}
    del inputs["features"]

    def ordered(way: Callable, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Tensor) -> Tensor:
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
    """Both directions and one gate, with a mixer's own parameters: step sizes as a product, log(-A)."""
    batch, channels, length = shape
    inputs = {}
    for seed, suffix in enumerate(("", "_b")):
        made = _direction(shape, device, dtype, seed)
        made["A"], made["delta"] = made["A"].neg().log(), made.pop("features")
        rank = _rank(channels)  # the product is of the size of the step sizes of `scan`
        made["weight"] = (0.5 / rank**0.5 * _draw(device, 20 + seed)(channels, rank)).to(dtype)
        inputs |= {name + suffix: tensor for name, tensor in made.items()}
    inputs["z"] = _halves((batch, length, channels), device, dtype)[1]

    def ordered(way: Callable, *tensors: Tensor) -> Tensor:
        each = len(tensors) // 2
        forward, backward = (Direction(*half, log_A=True) for half in (tensors[:each], tensors[each:-1]))
        return way(forward, backward, tensors[-1], True)

    names = backends(BIDIRECTIONAL, device)
    return Case(
        what="bidirectional scan",
        shape=tuple(shape),
        inputs=inputs,
        ways={name: partial(ordered, partial(bidirectional_scan, backend=name)) for name in names},
        reference=partial(ordered, partial(bidirectional_scan, backend="naive")),
        dtype=dtype,
        traffic=_bytes(inputs) + _bytes({"out": inputs["u"]}),
        roundings=2,  # the step sizes', and the result's
        exponentials=2 * batch * length * channels * STATES,
    )


def channel_major(kernels: peers.Kernels, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Case:
    """`scan` as upstream's kernel wants its tensors: what the kernels are worth without changes of layout."""
    case = scan(shape, device, dtype)
    turned = {n: t.transpose(1, 2).contiguous() if t.ndim == 3 else t for n, t in case.inputs.items()}

    def back(way: Callable, *tensors: Tensor) -> Tensor:
        return way(*(t.transpose(1, 2) if t.ndim == 3 else t for t in tensors)).transpose(1, 2)

    def theirs(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Tensor) -> Tensor:
        D, bias, z = rest
        return kernels.scan(u, delta, A, B, C, D=D, z=z, delta_bias=bias, delta_softplus=True)

    return dataclasses.replace(
        case,
        what="scan, channel-major",
        inputs=turned,
        ways={**{name: partial(back, way) for name, way in case.ways.items()}, kernels.name: theirs},
        reference=partial(back, case.reference),
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
    similarity = (take_tokens(unit, source) * take_tokens(unit, keep.gather(1, destination))).sum(-1)
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


def _direction(shape: Sequence[int], device: torch.device, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """u, delta, A, B, C, D, bias of a direction, and features; these, B and C are views of x_proj's output."""
    batch, channels, length = shape
    draw, rank = _draw(device, 10 + seed), _rank(channels)
    projected = draw(batch, length, rank + 2 * STATES).to(dtype)
    return {
        "u": draw(batch, length, channels).to(dtype),
        "delta": draw(batch, length, channels).mul(0.5).to(dtype),
        "A": -torch.exp(0.5 * draw(channels, STATES) + 1),
        "B": projected[..., rank : rank + STATES],
        "C": projected[..., rank + STATES :],
        "D": draw(channels),
        "bias": draw(channels) - 2,
        "features": projected[..., :rank],
    }


def _rank(channels: int) -> int:
    """Features of the step sizes: a 16th of the model's width, which is half the channels of a scan."""
    return max(1, channels // 32)


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
