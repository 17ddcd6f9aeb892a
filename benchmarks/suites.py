"""What each suite measures: a list of rows, one a way of computing something at one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import timing
from benchmarks.parity import Case, Refused, Verifier, as_tuple, leaves, upstream

FORWARD, BOTH = "forward", "forward + backward"


def measure_cases(
    cases: Iterable[Case], device: torch.device, runs: int, min_seconds: float = 0.05
) -> Iterator[dict[str, Any]]:
    """Rows of the operators: each way verified, and timed in turn with the others of its case."""
    for case in cases:
        head = {"what": case.what, "shape": case.shape}
        parity: dict[str, dict[str, float]] = {}
        verifier = Verifier(case)
        for name, way in case.ways.items():
            try:
                parity[name] = verifier.verify(way)
            except Refused as reason:
                yield {**head, "way": name, "refused": str(reason)}
        del verifier
        for kind in ((FORWARD, BOTH) if case.differentiable else (FORWARD,)) if parity else ():
            work = (case.traffic, case.macs, case.exponentials) if kind == FORWARD else ()
            floor = timing.Floor(device, case.dtype, *work)
            calls = {name: _call(case, case.ways[name], kind) for name in parity}
            found = timing.interleave({**calls, **floor.probes}, device, runs, min_seconds)
            for name, call in calls.items():
                row = {**head, "pass": kind, "way": name, **timing.times(found[name])}
                row |= timing.against_floor(floor.ms(found), row["median_ms"])
                yield row | {"memory_bytes": timing.peak_memory(call, device), "parity": parity[name]}


def _call(case: Case, way: Callable[..., Any], kind: str) -> Callable[[], Any]:
    if kind == FORWARD:
        inputs = [tensor.detach() for tensor in case.inputs.values()]
        return partial(_forward, way, inputs)
    inputs = leaves(case)
    outputs = [output for output in as_tuple(way(*inputs)) if output.requires_grad]
    return partial(_both, way, inputs, upstream(outputs, case.dtype))


@torch.no_grad()
def _forward(way: Callable[..., Any], inputs: list[torch.Tensor]) -> Any:
    return way(*inputs)


def _both(way: Callable[..., Any], inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> Any:
    outputs = [output for output in as_tuple(way(*inputs)) if output.requires_grad]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return torch.autograd.grad(outputs, wanted, weights, allow_unused=True)
