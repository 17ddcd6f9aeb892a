"""Files of safetensors: what the header says is held against the file before a tensor is made of it."""

from __future__ import annotations

import math
import mmap
import operator
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rmeeto.json_file import open_regular, parse_json
from rmeeto.reader.bytes import bytes_of, numbers
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
        ValueError: it is a pipe or device, or, as Unreadable, no such file, cut, or one that its tensors do not fill
            one behind the other.
    """
    with open_regular(path) as file:
        entries = _entries(file)
    return {name: torch.empty(shape, dtype=kind, device="meta") for name, (kind, shape, _) in entries.items()}


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, as views of it (`mapped` of `rmeeto.reader.read`).

    Raises:
        OSError: there is none.
        Unreadable: as `read_header`.
    """
    data = bytes_of(Path(path), mapped=True)
    return {
        name: numbers(data, start, math.prod(shape) * kind.itemsize, kind).reshape(shape)
        for name, (kind, shape, start) in _entries(data).items()
    }


def _entries(file: BinaryIO | mmap.mmap) -> dict[str, tuple[torch.dtype, list[int], int]]:
    """Type, shape and first byte of each tensor of a file; they are checked against its size."""
    start = file.read(8)
    (size,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
    header = file.read(min(size, _LARGEST_HEADER))
    if not size or len(header) < size:
        raise Unreadable(f"it is no safetensors file of at most {_LARGEST_HEADER} bytes of header, or cut")
    first, end = 8 + size, file.seek(0, os.SEEK_END) or file.tell()
    rest = end - first
    try:
        described: dict[str, Any] = parse_json(header)
        described.pop(_METADATA, None)
        entries = {
            name: (
                _TYPES[entry["dtype"]],
                entry["shape"],
                [first + operator.index(at) for at in entry["data_offsets"]],
            )
            for name, entry in described.items()
        }
        for _, shape, _ in entries.values():
            if not all(type(n) is int and n >= 0 for n in shape) or math.prod(n or 1 for n in shape) >= 2**48:
                raise ValueError("a shape is none")
        places = [(places, math.prod(shape) * kind.itemsize) for kind, shape, places in entries.values()]
        places.sort()
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Unreadable("its header is no list of tensors") from None
    for place, nbytes in places:
        if place != [first, first + nbytes]:
            raise Unreadable("its tensors do not lie one behind the other: it is made by hand, or damaged")
        first += nbytes
    if first != end:
        wanted = sum(nbytes for _, nbytes in places)
        raise Unreadable(f"its tensors have {wanted} bytes, of which it holds {rest}: it is cut, or made by hand")
    return {name: (kind, shape, places[0]) for name, (kind, shape, places) in entries.items()}
