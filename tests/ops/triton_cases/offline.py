"""Compile every Triton kernel for a GPU that is not there, as the operators would launch it.

    python -m tests.ops.triton_cases.offline 90 vim_tiny vim_tiny_evaluation

prints (for 80,120 of each of the two) a JSON line a kernel: its name, the GPU, what it was specialised for, registers,
bytes of stack (spills) and of shared memory a program, what its loop over tiles is made of (`sass.py`; of 9.0 alone,
where it is bounded), seconds to compile. A process of its own: it replaces Triton's driver and launches nothing.
"""

from __future__ import annotations

import json
import os
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from rmeeto.ops import triton_support

# The launchers then take CPU tensors, whose contents nobody reads.
triton_support.dispatch_keys = lambda: ("CPU",)

from rmeeto.merge import Tokens  # noqa: E402
from rmeeto.ops.add_norm.triton_add_norm import add_rms_norm  # noqa: E402
from rmeeto.ops.conv1d.triton_conv1d import bidirectional_conv1d  # noqa: E402
from rmeeto.ops.selective_scan import Direction, triton_scan  # noqa: E402
from rmeeto.ops.selective_scan.triton_scan import bidirectional_scan, selective_scan  # noqa: E402
from rmeeto.ops.token_merge.triton_match import match_tokens  # noqa: E402
from rmeeto.ops.token_merge.triton_merge import merge_tokens  # noqa: E402
from tests.ops.triton_cases.sass import dump, longest_loop, resources  # noqa: E402

BF16, FP32 = torch.bfloat16, torch.float32
# (embed, tokens, merged tokens, storage, training, states if not 16)
SETTINGS: dict[str, tuple] = {
    f"{name}{'' if training else '_evaluation'}{'' if dtype == BF16 else '_fp32'}": (*sizes, dtype, training)
    for name, sizes in {
        "vim_tiny": (192, 197, 11),
        "vim_small": (384, 197, 11),
        "vim_base": (768, 197, 11),
        "video_middle": (576, 1569, 88),
    }.items()
    for dtype in (BF16, FP32)
    for training in (True, False)
}
SETTINGS |= {
    "vim_tiny_fp16": (192, 197, 11, torch.float16, True),
    "states_40": (16, 10, 2, FP32, True, 40),
    "video_tiny_evaluation": (192, 1569, 88, BF16, False),
}
MULTIPROCESSORS = {
    "90": (1, 132)
}  # few, and more than one sample fills: sequences are then split; elsewhere the latter


class Driver:
    """As much of a CUDA driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def block(
    embed: int,
    tokens: int,
    r: int,
    dtype: torch.dtype,
    training: bool,
    states: int = 16,
    multiprocessors: tuple[int, ...] = (132,),
) -> None:
    """Launch what one block of a model launches, forward and (training) backward."""
    inner, rank = 2 * embed, -(-embed // 16)

    def make(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=of).requires_grad_(training)

    def direction(u: torch.Tensor) -> Direction:
        features, B, C = make(1, tokens, rank + 2 * states, of=dtype).split([rank, states, states], -1)
        A, D, bias, weight = make(inner, states), make(inner), make(inner), make(inner, rank)
        return Direction(u, features, A, B, C, D, bias, weight, log_A=True)

    hidden, residual = make(1, tokens, embed, of=dtype), make(1, tokens, embed)
    plan = match_tokens(hidden.detach(), r, Tokens(tokens, tokens // 2))
    merged, size = merge_tokens(hidden, residual, make(1, tokens, 1).detach(), plan)
    normed, total = add_rms_norm(hidden, residual, make(embed))
    u, z = make(1, tokens, 2 * inner, of=dtype).chunk(2, dim=-1)
    taps = make(inner, 1, 4), make(inner), make(inner, 1, 4), make(inner)
    forward, backward = bidirectional_conv1d(u, *taps)
    outputs = [merged, normed, total]
    for sms in multiprocessors:
        triton_scan.num_sms = lambda _, sms=sms: sms
        outputs.append(bidirectional_scan(direction(forward), direction(backward), z, True))
        if training:
            torch.autograd.backward(outputs, [torch.zeros_like(output) for output in outputs], retain_graph=True)
    if not training:  # the public one-direction face, with the step size given
        u = make(1, inner, tokens, of=dtype).transpose(1, 2)
        B = make(1, states, tokens, of=dtype).transpose(1, 2)
        selective_scan(u, u, make(inner, states), B, B)


def core_seconds() -> float:
    """That this process and those that it has started had of a core."""
    return sum(os.times()[:4])


def main(capabilities: str, *settings: str) -> None:
    run, seen = JITFunction.run, set()

    def compile_only(self, *arguments, grid, warmup=False, **options):
        start = core_seconds()
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        if kernel.hash in seen:
            return kernel
        seen.add(kernel.hash)
        flags = {k: v for k, v in options.items() if k.isupper() and not isinstance(v, torch.Tensor)}
        report = {
            "kernel": self.fn.__name__,
            "capability": int(capability),
            "setting": setting,
            "flags": flags,
            **resources(kernel.asm["cubin"]),
            "loop": longest_loop(dump(kernel.asm["cubin"], "-sass")) if capability == "90" else {},
            "shared": kernel.metadata.shared,
            "fused": kernel.metadata.enable_fp_fusion,
        }
        print(json.dumps(report | {"seconds": round(core_seconds() - start, 1)}), flush=True)
        return kernel

    JITFunction.run = compile_only
    for capability in capabilities.split(","):
        driver.set_active(Driver(int(capability)))
        for setting in settings:
            block(*SETTINGS[setting], multiprocessors=MULTIPROCESSORS.get(capability, (132,)))


if __name__ == "__main__":
    main(*sys.argv[1:])
