"""What the C++ kernels' launchers share: their structs, and the call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
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
    """A struct of csrc, with that one's names in that one's order; 0 and null where nothing is given.

    Made of keywords. A tensor goes in as its address, and lives as long as the struct does.
    """

    _names: frozenset[str] = frozenset()

    def __init_subclass__(cls) -> None:
        cls._names |= {field[0] for field in cls._fields_}

    def __init__(self, **fields: Any) -> None:
        if not self._names.issuperset(fields):  # ctypes would make an attribute of it
            raise TypeError(f"{type(self).__name__} has no {sorted(fields.keys() - self._names)}")
        self._given = fields
        super().__init__(
            **{name: _field(value) if type(value) is not int else value for name, value in fields.items()}
        )


class Task(Struct):
    """What a kernel takes: `run` fills in the threads it runs on."""

    _fields_ = integers("openmp", "threads")


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


def spread(name: str, tensor: Tensor | None, dims: Sequence[str] = ("batch", "token")) -> dict[str, Any]:
    """The fields of a tensor that may have gaps: its address, and its strides in elements by the names of its dims."""
    if tensor is None:
        return {}
    return {name: tensor, **{f"{name}_{dim}": stride for dim, stride in zip(dims, tensor.stride())}}


def _field(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return tuple(_field(one) for one in value) if isinstance(value, tuple) else value
