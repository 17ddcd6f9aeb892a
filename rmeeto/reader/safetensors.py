"""Files of safetensors: what the header says is checked before the package reads the rest."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rmeeto.json_file import open_regular, parse_json
from rmeeto.reader.values import Unreadable

_LARGEST_HEADER = 4 * 2**20  # bytes; that of a model of 1,000 tensors has 100,000
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
_METADATA = "__metadata__"


def read_header(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file without their numbers, on the meta device: types and shapes that take no memory.

    Raises:
        OSError: there is none.
        Unreadable: it is no such file, cut, or not of the size that its tensors have.
    """
    with open_regular(path) as file:
        start = file.read(8)
        (size,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
        header = file.read(min(size, _LARGEST_HEADER))
        if not size or len(header) < size:
            raise Unreadable(
                f"it is no safetensors file of at most {_LARGEST_HEADER} bytes of header, or cut"
            )
        rest = os.fstat(file.fileno()).st_size - 8 - size
    try:
        described: dict[str, Any] = parse_json(header)
        described.pop(_METADATA, None)
        shapes = {name: (_TYPES[entry["dtype"]], entry["shape"]) for name, entry in described.items()}
        if not all(type(n) is int and 0 <= n < 2**48 for _, shape in shapes.values() for n in shape):
            raise ValueError("a shape is none")
        wanted = sum(math.prod(shape) * kind.itemsize for kind, shape in shapes.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Unreadable("its header is no list of tensors") from None
    if wanted != rest:
        raise Unreadable(
            f"its tensors have {wanted} bytes, of which it holds {rest}: it is cut, or made by hand"
        )
    return {name: torch.empty(shape, dtype=kind, device="meta") for name, (kind, shape) in shapes.items()}


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        OSError: there is none.
        Unreadable: it is no such file, or damaged.
    """
    read_header(path)
    try:
        return dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise Unreadable(str(error).strip().splitlines()[0][:160]) from None
