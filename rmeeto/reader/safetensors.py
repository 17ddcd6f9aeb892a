"""Files of safetensors: what the header says is checked before the package reads the rest."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rmeeto.json_file import parse_json
from rmeeto.reader.values import Unreadable

_LARGEST_HEADER = 4 * 2**20  # bytes; that of a model of 1,000 tensors has 100,000
_METADATA = "__metadata__"


def read_header(path: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type (as safetensors writes it, such as "F32") and shape of each tensor of a file.

    Raises:
        OSError: there is none.
        Unreadable: it is no such file, or cut.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        (size,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
        header = file.read(min(size, _LARGEST_HEADER))
        if not size or len(header) < size:
            raise Unreadable(
                f"it is no safetensors file of at most {_LARGEST_HEADER} bytes of header, or cut"
            )
    try:
        described: dict[str, Any] = parse_json(header)
        described.pop(_METADATA, None)
        return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in described.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Unreadable("its header is no list of tensors") from None


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        OSError: there is none.
        Unreadable: it is no such file, or damaged.
    """
    read_header(path)
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise Unreadable(str(error).strip().splitlines()[0][:160]) from None
