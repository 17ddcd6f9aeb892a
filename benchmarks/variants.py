"""The scan's Triton kernels under settings that are worth trying where there is a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity import Case

# Tiles, registers, stages of the compiler's pipeline, loads ahead; the second of both passes.
FORWARD = (
    *(
        {"FORWARD_TILE": tile, "FORWARD_REGISTERS": n}
        for tile in ((8, 2, 8), (8, 1, 16), (4, 1, 32))
        for n in (128, 168, 255)
    ),
    {"FORWARD_STAGES": 2},
    {"POLYNOMIAL": 4},
)
BACKWARD = (
    {},
    {"AHEAD": True},
    {"BACKWARD_STAGES": 2},
    {"BACKWARD_TILE": (4, 4, 4)},
    {"BACKWARD_TILE": (4, 2, 8)},
    {"LONG": 1},  # a state every 64 tokens: less memory
)


def variants(
    settings: Sequence[dict[str, Any]],
    make: Callable[..., Case],
    shape: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
) -> Case:
    """The Triton kernels of the case of ``make`` under other settings; forward, or (if one is empty) both passes."""
    from rmeeto.ops.selective_scan import triton_scan

    case = make(shape, device, dtype)
    shipped = case.ways["triton"]
    names = {name for values in settings for name in values}
    before = {name: getattr(triton_scan, name) for name in names}

    def use(values: dict[str, Any]) -> None:
        for name, value in (before | values).items():
            setattr(triton_scan, name, triton_scan.Tile(*value) if isinstance(value, tuple) else value)

    def under(values: dict[str, Any]) -> Callable:
        def call(*tensors: Tensor) -> Tensor:
            use(values)  # and left so: the backward pass, which follows, reads it too
            return shipped(*tensors)

        return call

    return dataclasses.replace(
        case,
        what=f"bidirectional scan, settings of {'both passes' if {} in settings else 'the forward pass'}",
        ways={", ".join(f"{n} {v}" for n, v in values.items()) or "shipped": under(values) for values in settings},
        differentiable={} in settings,
        restore=partial(use, {}),
    )
