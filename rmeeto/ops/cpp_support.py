"""What the C++ kernels' launchers share: their structs, and the call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rmeeto.ops import build

STORAGE = (torch.float32, torch.bfloat16)  # types of the tensors that kernels take


def pointers(*names: str, each: int = 0) -> list[tuple[str, Any]]:
    """Fields of a struct: addresses, or (``each`` > 0) arrays of so many of them."""
    return [(name, ctypes.c_void_p * each if each else ctypes.c_void_p) for name in names]


def integers(*names: str, each: int = 0) -> list[tuple[str, Any]]:
    """Fields of a struct: 64-bit integers, or arrays of them."""
    return [(name, ctypes.c_int64 * each if each else ctypes.c_int64) for name in names]


class Struct(ctypes.Structure):
    """A struct of csrc, with that one's names in that one's order; 0 and null where nothing is assigned.

    It has addresses alone: what they point to stays in variables until `run` returns. Without ``__slots__ = ()`` ctypes
    takes a misspelt field for an attribute.
    """

    __slots__ = ()


class Task(Struct):
    """What a kernel takes: `run` fills in the threads it runs on."""

    __slots__ = ()
    _fields_ = integers("openmp", "threads")


def built(function: Callable) -> Callable:
    """A function that calls kernels of the library, once that is there.

    Raises:
        BackendUnavailable: it cannot be built here.
    """
    build.library()
    return function


def run(function: str, task: Task) -> None:
    """Run a kernel of the library."""
    task.openmp, task.threads = build.openmp(), torch.get_num_threads()
    getattr(build.library(), function)(ctypes.byref(task))


def constant(name: str) -> int:
    """What a function of the library without arguments returns."""
    return getattr(build.library(), name)()


def suffix(*dtypes: torch.dtype) -> str:
    """The end of a kernel's name for these types of storage."""
    return "".join("_bf16" if dtype == torch.bfloat16 else "_f32" for dtype in dtypes)


def rows(tensor: Tensor) -> Tensor:
    """The tensor, or a copy, with the channels of a token side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``; where that changes nothing, an exported graph holds nothing of it."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def pointer(tensor: Tensor | None) -> int:
    """Address of the first element, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def spread(tensor: Tensor | None) -> tuple[int, int, int]:
    """Address of a tensor (B, L, C) whose tokens may lie apart, and its strides of samples and tokens, in elements."""
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))
