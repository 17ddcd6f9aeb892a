"""Cases of the Triton kernels: on a GPU, or (TRITON_INTERPRET=1, set before Triton is imported) in its interpreter.

These files are not collected by themselves: `test_triton_parity.py` runs them in a process of their own.
"""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def repair_interpreter() -> None:
    """What Triton's interpreter does otherwise than a GPU (seen in 3.6 and 3.9), and what makes it slow."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast, dot, patch = Builder.cast_impl, Builder.create_dot, interpreter._patch_lang

    def round_to_nearest(self, source, target):
        """It cuts the low bits off when it stores fp32 as bf16."""
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, target)
        bits = source.data.astype(np.float32).view(np.uint32)
        return Handle(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), tl.bfloat16)

    def widened(operand):
        """It multiplies the bit patterns of bf16."""
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return Handle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    class Once:
        """It patches triton.language again for every call of a device function."""

        done: set = set()

        def restore(self):
            pass

    def index(self):
        """It takes a tensor of one element for a number, which new versions of numpy refuse."""
        return int(self.handle.data.reshape(-1)[0])

    def patch_once(function):
        languages = frozenset(id(v) for v in function.__globals__.values() if v is tl or v is tl.core)
        if languages not in Once.done:
            Once.done.add(languages)
            patch(function)
            tl.tensor.__index__ = index
        return Once()

    Builder.cast_impl = round_to_nearest
    Builder.create_fp_trunc = Builder.create_fp_ext = lambda self, *arguments: self.cast_impl(*arguments)
    Builder.create_dot = lambda self, a, b, *others: dot(self, widened(a), widened(b), *others)
    interpreter._patch_lang = patch_once


def shorten_interpreter() -> None:
    """What it finds anew for every operation is kept, which takes two thirds of its time; the values are the same."""
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    block_type, tensor, broadcast = tl.block_type.__init__, tl.tensor.__init__, TritonSemantic.broadcast_impl_value
    numpy_type, equal, unwrap = interpreter._get_np_dtype, tl.dtype.__eq__, tl.core._unwrap_if_constexpr
    blocks: dict = {}

    def block_type_once(self, element_ty, shape):
        key = (id(element_ty), *(getattr(length, "value", length) for length in shape))
        if key not in blocks:
            block_type(self, element_ty, shape)
            blocks[key] = self  # which keeps the element type, so that no other has its id
        vars(self).update(vars(blocks[key]))

    def tensor_once(self, handle, type):
        if "of_tensors" not in vars(type):
            tensor(self, handle, type)
            type.of_tensors = vars(self).copy()
        vars(self).update(type.of_tensors, handle=handle)

    def numpy_type_once(type):
        if "of_numpy" not in vars(type):
            type.of_numpy = numpy_type(type)
        return type.of_numpy

    def broadcast_others(self, a, b):
        same = a.type.is_block() and b.type.is_block() and list(a.type.shape) == list(b.type.shape)
        return (a, b) if same else broadcast(self, a, b)

    tl.block_type.__init__, tl.tensor.__init__ = block_type_once, tensor_once
    TritonSemantic.broadcast_impl_value = broadcast_others
    interpreter._get_np_dtype = numpy_type_once
    tl.dtype.__eq__ = lambda self, other: self is other or equal(self, other)
    tl.core._unwrap_if_constexpr = lambda value: value if isinstance(value, (int, tl.tensor)) else unwrap(value)
    # A second sum in 64 bits, for an assertion that is not made without options.debug.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


if INTERPRETED:
    repair_interpreter()
    shorten_interpreter()


@pytest.fixture
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def unwritten_shows(monkeypatch):
    """New tensors full of NaN (or of a position far outside), so that what no kernel writes fails the comparison."""

    def filled(make):
        def new(*arguments, **options):
            tensor = make(*arguments, **options)
            if tensor.device.type == "meta" or type(tensor) is not torch.Tensor:
                return tensor
            return tensor.fill_(float("nan") if tensor.is_floating_point() else 1 << 30)

        return new

    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))
