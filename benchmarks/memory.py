"""What a block keeps for its backward pass, by length: every saved tensor is counted, on no machine's memory.

    python -m benchmarks memory --dtype bf16

Tensors are fake ones of a GPU: shapes and types without numbers, as the Triton operators make them there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.results import Unit
from rmeeto.merge import TokenState
from rmeeto.nn import BiMamba
from rmeeto.nn.block import Block
from rmeeto.ops import triton_support

# Name, width, blocks, batch and the lengths of a clip (or an image) of so many frames.
MODELS = {
    "videomamba_video_middle": (576, 32, 64, (393, 785, 1569, 3137, 6273)),
    "vim_small": (384, 24, 128, (197, 785)),
}
KEEP = {"a state every 8 tokens": 1 << 30, "as shipped": None}  # from how many tokens on states are sparse


def units(dtype: torch.dtype) -> Iterator[Unit]:
    """One a model and length."""
    for name, (_, _, _, lengths) in MODELS.items():
        for length in lengths:
            yield Unit(f"{name}, {length} tokens", partial(rows, name, length, dtype), "memory")


def rows(name: str, length: int, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """A row for each distance of the states that the scan keeps."""
    from rmeeto.ops.selective_scan import triton_scan  # needs Triton

    width, blocks, batch, _ = MODELS[name]
    for way, long in KEEP.items():
        with (
            mock.patch.object(triton_scan, "LONG", long or triton_scan.LONG),
            mock.patch.object(triton_support, "require_triton"),
        ):
            kept, states = saved(width, length, dtype)
            every = triton_scan.stored_every(length)
        yield {
            "what": name,
            "way": way,
            "tokens": length,
            "state_every": every,
            "block_MB": kept / 1e6,
            "states_MB": states / 1e6,
            "model_GB": kept * blocks * batch / 1e9,
            "batch": batch,
        }


def saved(width: int, length: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that one sample keeps in one block between its forward and its backward pass, and those of states in them;
    parameters left out. The residual is fp32."""
    with FakeTensorMode(), torch.device("cuda"):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            mixer = BiMamba(width)
            block = Block(mixer, width)
        finally:
            torch.set_default_dtype(default)
        for name in ("D", "D_b"):  # the scan reads them in fp32, as A, which is made so
            setattr(mixer, name, nn.Parameter(torch.empty(getattr(mixer, name).shape)))
        own = {parameter.untyped_storage()._cdata for parameter in block.parameters()}
        hidden = torch.empty(1, length, width, dtype=dtype).requires_grad_()
        residual = torch.empty(1, length, width).requires_grad_()
        kept: dict[int, tuple[int, int]] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes(), tensor.ndim
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            state = block(TokenState(hidden, residual))
        alive = {key: value for key, value in kept.items() if key not in own}
        assert state.hidden.requires_grad
    return sum(size for size, _ in alive.values()), sum(size for size, ndim in alive.values() if ndim == 4)
