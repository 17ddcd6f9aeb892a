"""Each operator alone, by the GPU's time without the host's.

Against the least time that its bytes and exponentials take, and against upstream's kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import floors
from benchmarks.gpu.peers import Kernels
from benchmarks.gpu.setting import Setting
from rmeeto.merge import Tokens
from rmeeto.ops import (
    Direction,
    add_rms_norm,
    bidirectional_conv1d,
    bidirectional_scan,
    match_tokens,
    merge_tokens,
)

STATES = 16
# Settings of the forward scan that are worth trying where there is a GPU.
KNOBS = "POLYNOMIAL", "FORWARD_REGISTERS", "FORWARD_TILE"
VARIANTS = [
    *((0, registers, (1, 16)) for registers in (128, 168, 255)),
    *((polynomial, 168, (1, 16)) for polynomial in (4, 8)),
    *((0, registers, (2, 8)) for registers in (128, 168, 255)),
]


def run(setting: Setting) -> dict[str, Any]:
    """Microseconds, floor and their ratio by model, batch and operator; then the forward scan's variants."""
    kernels = setting.kernels()
    length = 65 if setting.dry else 197
    table: dict[str, Any] = {"upstream": kernels if isinstance(kernels, str) else kernels.name}
    with torch.no_grad():
        for name, embed in setting.models.items():
            for batch in setting.batches:
                rows = forward_rows(setting, kernels, batch, length, embed)
                table[f"{name}, batch {batch}"] = rows
    for name, embed in setting.models.items():
        batch = setting.batches[-1]
        table[f"{name}, batch {batch}, with gradients"] = backward_rows(setting, batch, length, embed)
    if not setting.dry:
        table["scan variants"] = variants(setting, setting.batches[-1], length, 192)
    return table


class Inputs:
    """What a block of a model gives its operators, in bf16 with fp32 parameters.

    Attributes:
        tensors: all of them, views of one another as in the block, leaves where gradients are asked for.
    """

    def __init__(self, setting: Setting, batch: int, length: int, embed: int, grad: bool = False) -> None:
        inner, self.rank = 2 * embed, -(-embed // 16)

        def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(shape, device=setting.device).to(dtype)

        half = torch.bfloat16
        self.hidden, self.residual = make(batch, length, embed, dtype=half), make(batch, length, embed)
        self.weight = make(embed)
        self.u, self.z = make(batch, length, 2 * inner, dtype=half).chunk(2, dim=-1)
        self.taps = make(inner, 1, 4), make(inner), make(inner, 1, 4), make(inner)
        self.directions = []
        for _ in range(2):
            features, B, C = make(batch, length, self.rank + 2 * STATES, dtype=half).split(
                [self.rank, STATES, STATES], -1
            )
            log_A = (torch.rand(inner, STATES, device=setting.device) * 8 + 0.1).log()
            weight, bias = make(inner, self.rank, dtype=half), make(inner)
            u = make(batch, length, inner, dtype=half)
            self.directions.append(Direction(u, features, log_A, B, C, make(inner), bias, weight, log_A=True))
        self.tensors = [self.hidden, self.residual, self.weight, self.u, self.z, *self.taps]
        for *tensors, _ in self.directions:
            self.tensors += tensors
        for tensor in self.tensors:
            tensor.requires_grad_(grad)

    def norm(self) -> Any:
        return add_rms_norm(self.hidden, self.residual, self.weight)

    def conv(self) -> Any:
        return bidirectional_conv1d(self.u, *self.taps)

    def scan(self) -> Any:
        return bidirectional_scan(*self.directions, self.z, True)

    def upstream_conv(self, kernels: Kernels) -> Callable[[], Any]:
        x = self.u.transpose(1, 2).contiguous()
        weight, bias = self.taps[0].squeeze(1).to(x.dtype), self.taps[1].to(x.dtype)
        return lambda: [kernels.conv(x, weight, bias, activation="silu") for _ in range(2)]

    def upstream_scan(self, kernels: Kernels) -> Callable[[], Any]:
        """Both directions' calls, the step sizes given, layouts as upstream wants them; no flips."""
        u, delta, A, B, C, D, bias, *_ = self.directions[0].plain()
        u, delta, B, C, z = (t.transpose(1, 2).contiguous() for t in (u, delta, B, C, self.z))
        return lambda: [
            kernels.scan(u, delta, A, B, C, D=D, z=z, delta_bias=bias, delta_softplus=True) for _ in range(2)
        ]


def forward_rows(
    setting: Setting, kernels: Kernels | str, batch: int, length: int, embed: int
) -> dict[str, dict[str, float]]:
    """Microseconds without gradients."""
    inputs, r = Inputs(setting, batch, length, embed), 11
    tokens = Tokens(length, length // 2)
    plan = match_tokens(inputs.hidden, r, tokens)
    size = torch.ones(batch, length, 1, device=setting.device)
    calls: dict[str, Callable[[], Any]] = {
        "add_norm": inputs.norm,
        "conv": inputs.conv,
        "scan": inputs.scan,
        "match": lambda: match_tokens(inputs.hidden, r, tokens),
        "merge": lambda: merge_tokens(inputs.hidden, inputs.residual, size, plan),
    }
    if not isinstance(kernels, str):
        calls |= {
            "conv, upstream": inputs.upstream_conv(kernels),
            "scan, upstream": inputs.upstream_scan(kernels),
        }
    tokens, rates = batch * length, setting.rates()
    work = [floors.norm(tokens, embed), floors.conv(tokens, embed), floors.scan(tokens, embed)]
    least = {item.name: item.seconds(rates) for item in [*work, *floors.merge(batch, length, r, embed)]}
    rows = {}
    for name, seconds in setting.device_time(calls).items():
        floor = least[name.split(",")[0]]
        rows[name] = {"us": seconds * 1e6, "floor_us": floor * 1e6, "over_floor": seconds / floor}
    return rows


def backward_rows(setting: Setting, batch: int, length: int, embed: int) -> dict[str, dict[str, float]]:
    """Microseconds of forward and backward together, without the views' gradients and their sums."""
    inputs = Inputs(setting, batch, length, embed, grad=True)

    def trained(call: Callable[[], Any]) -> Callable[[], None]:
        outputs = call()
        one = isinstance(outputs, Tensor)
        seeds = [torch.randn_like(output) for output in ([outputs] if one else outputs)]

        def both() -> None:
            again = call()
            torch.autograd.grad([again] if one else again, inputs.tensors, seeds, allow_unused=True)

        return both

    calls = {name: trained(getattr(inputs, name)) for name in ("norm", "conv", "scan")}
    return {name: {"us": seconds * 1e6} for name, seconds in setting.device_time(calls).items()}


def variants(setting: Setting, batch: int, length: int, embed: int) -> dict[str, float]:
    """Microseconds of the forward scan under other settings of its kernel."""
    from rmeeto.ops.selective_scan import triton_scan

    inputs = Inputs(setting, batch, length, embed)
    shipped = [getattr(triton_scan, name) for name in KNOBS]
    captured, calls = {}, 10
    try:
        for values in VARIANTS:
            for name, value in zip(KNOBS, values):
                setattr(triton_scan, name, value)
            with torch.no_grad():
                label = ", ".join(f"{name} {value}" for name, value in zip(KNOBS, values))
                captured[label] = setting.replays(inputs.scan, calls)
    finally:
        for name, value in zip(KNOBS, shipped):
            setattr(triton_scan, name, value)
    return {name: seconds / calls * 1e6 for name, seconds in setting.time(captured).items()}
