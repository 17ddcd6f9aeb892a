"""What a checkpoint's pickle may name, and the plain values that stand for it.

A name is looked up in the tables below and nowhere else, so no module is imported for it; only what stands in them can
be called, and each makes a plain value: a number, text, dictionary, list, set, numeric array, or a tensor that lies
within the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Unreadable(ValueError):
    """A file that is no checkpoint, is damaged, or holds what is no plain value; the message says which."""


class Unknown(Unreadable):
    """It holds what has a name that is not known here."""


class Inert:
    """Stands for an object of a known class, such as argparse's Namespace: its attributes or items, no behaviour."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.values: dict[Any, Any] = {}


class Name:
    """What a name of the tables stands for, until the pickle calls it."""

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        self.name, self.make = name, make


class Array:
    """An array of NumPy before its state is known. `places`: where the pickle has remembered it."""

    def __init__(self, *_: Any) -> None:
        self.places: list[int] = []

    def finish(self, state: Any) -> np.ndarray:
        _, shape, dtype, by_columns, data = state
        data, shape = _bytes(data), tuple(map(_count, shape))
        if math.prod(shape) * dtype.found.itemsize != len(data):
            raise Unreadable(f"an array of {shape} has {len(data)} bytes")
        return np.frombuffer(data, dtype.found).reshape(shape, order="F" if by_columns else "C").copy()


class DType:
    """A numeric type of NumPy; those of objects, texts and records are refused."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?(f[248]|[iu][1248]|b1|c8|c16)", code):
            raise Unknown(f"it holds an array of the type {printable(code)}; expected numbers")
        self.found = np.dtype(code)

    def finish(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.found = self.found.newbyteorder(state[1])


class Storage:
    """The numbers that tensors are views of. `numbers`: (n,) of its type, or bytes where the tensor says the type."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers


def _tensor(storage: Storage, offset: Any, size: Any, stride: Any, *_: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A view of a storage: no element beyond its end, and not more elements than it has (a stride of 0)."""
    numbers = storage.numbers if dtype is None else storage.numbers.view(dtype)
    offset, size, stride = _count(offset), tuple(map(_count, size)), tuple(map(_count, stride))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > numbers.numel() or (math.prod(size) and last >= numbers.numel()):
        raise Unreadable(f"a tensor of {size} lies beyond its {numbers.numel()} numbers")
    return numbers.as_strided(size, stride, offset if math.prod(size) else 0)


def _typed_tensor(*arguments: Any) -> Tensor:
    *most, dtype, _ = (*arguments, None)[:8]
    return _tensor(*most, dtype=dtype)


def _bytes(text: Any, encoding: str = "latin1") -> bytes:
    if isinstance(text, str) and encoding in ("latin1", "latin-1"):
        return text.encode("latin1")
    if not isinstance(text, bytes):
        raise Unreadable(f"it makes bytes of a {type(text).__name__}")
    return text


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise Unreadable(f"a size or place of a tensor is {printable(value)}")
    return value


def _scalar(dtype: DType, data: Any) -> Any:
    data = _bytes(data)
    if len(data) != dtype.found.itemsize:
        raise Unreadable("a number of NumPy has another length than its type")
    return np.frombuffer(data, dtype.found)[0].item()


def _pairs(pairs: Any = ()) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs.items() if type(pairs) is dict else pairs:
        found[key_of(key)] = value
    return found


def key_of(key: Any) -> Any:
    """A key of plain values: that of a tuple of tuples could take for ever to hash."""
    plain = (str, int, float, bool, bytes, complex, type(None), torch.dtype)
    if isinstance(key, plain) or (type(key) is tuple and all(isinstance(part, plain) for part in key)):
        return key
    raise Unreadable(f"a {type(key).__name__} is the key of a dictionary or in a set")


def _no_value(*_: Any) -> Any:
    raise Unreadable("it calls what is a name of a type only")


def _device(*parts: Any) -> str:
    if not all(isinstance(part, str | int) for part in parts):
        raise Unreadable("a device has a name that is no text")
    return ":".join(map(str, parts))


def _path(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise Unreadable("a path has parts that are no text")
    return str(PurePosixPath(*parts))


SUBCLASS = "torch._tensor._rebuild_from_type_v2"  # (function, class, arguments, state): the tensor without its class
_VALUES: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _pairs,
    "collections.Counter": _pairs,
    "collections.defaultdict": lambda *_: {},
    "builtins.set": lambda items=(): {key_of(item) for item in items},
    "builtins.frozenset": lambda items=(): frozenset(key_of(item) for item in items),
    "builtins.bytearray": lambda *text: bytearray(_bytes(*text) if text else b""),
    "builtins.bytes": lambda *text: _bytes(*text) if text else b"",
    "builtins.complex": lambda real, imaginary: complex(float(real), float(imaginary)),
    "_codecs.encode": _bytes,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": _device,
    "torch.serialization._get_layout": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    SUBCLASS: lambda *_: None,
    "numpy.dtype": DType,
    **{
        f"numpy.{core}.multiarray.{name}": make
        for core in ("core", "_core")  # before NumPy 2, and since
        for name, make in (("scalar", _scalar), ("_reconstruct", Array))
    },
    # Options and the like that training scripts keep beside the weights.
    **dict.fromkeys(
        (
            "argparse.Namespace", "types.SimpleNamespace", "easydict.EasyDict", "yacs.config.CfgNode",
            "fvcore.common.config.CfgNode", "pytorch_lightning.utilities.parsing.AttributeDict",
            "lightning.pytorch.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict",
            "lightning.fabric.utilities.data.AttributeDict", "datetime.datetime", "datetime.timedelta",
        ),
        Inert,
    ),
    **{
        f"{module}.{kind}": _path
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    # Named as an argument or as an option's value, never called.
    **dict.fromkeys(
        (
            "numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter", "builtins.int", "builtins.float",
            "builtins.bool", "builtins.str", "builtins.dict", "builtins.list", "builtins.tuple",
        ),
        _no_value,
    ),
}  # fmt: skip
_DTYPES = {
    str(kind): kind
    for kind in vars(torch).values()
    if isinstance(kind, torch.dtype) and not str(kind).startswith(("torch.q", "torch.bits"))
}
# torch's classes of storages name the type of their numbers; None: the tensor names it.
STORAGES = {
    **{
        f"torch.{name}Storage": kind
        for name, kind in {
            "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
            "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
            "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
        }.items()
    },
    "torch.storage.UntypedStorage": None,
}  # fmt: skip


def find(module: str, name: str) -> Any:
    module = {"__builtin__": "builtins"}.get(module, module)  # as protocol 2 writes it
    full = f"{module}.{name}"
    if full in _DTYPES:
        return _DTYPES[full]
    if full in STORAGES:
        return Name(full, _no_value)
    if full not in _VALUES:
        raise Unknown(f"it holds {printable(full)}, which is more than a plain value")
    return Name(full, _VALUES[full])


def printable(value: Any) -> str:
    """A value of a file as short text without control characters."""
    text = value if isinstance(value, str) else repr(value) if isinstance(value, int | float) else str(type(value))
    return text[:100].encode("unicode_escape").decode()
