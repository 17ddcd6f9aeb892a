"""Checkpoint files made by hand: what `torch.save` would never write."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

MARK, REDUCE, BUILD, STOP, EMPTY = b"(", b"R", b"b", b".", b")"


def name(full: str) -> bytes:
    """The operation that names a function or class."""
    module, _, member = full.rpartition(".")
    return b"c" + module.encode() + b"\n" + member.encode() + b"\n"


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    kind = b"X" if isinstance(value, str) else b"B"
    return kind + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"L%dL\n" % value


def items(*values: bytes) -> bytes:
    """A tuple."""
    return MARK + b"".join(values) + b"t"


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + items(*arguments) + REDUCE


def entry(key: str, value: bytes) -> bytes:
    """A dictionary of one entry."""
    return b"}" + text(key) + value + b"s"


def storage(count: int, key: str = "0", kind: str = "torch.FloatStorage") -> bytes:
    return items(text("storage"), name(kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(count: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, **of: str) -> bytes:
    """A tensor of a storage of `count` numbers."""
    shape, steps = (items(*map(number, values)) for values in (size, stride))
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", storage(count, **of), number(offset), shape, steps, b"\x89", hooks)


def doubled(times: int, kind: bytes = b"]%sh\0h\0e") -> bytes:
    """A value that stands twice in the next, and so on: 2 ** `times` places, a few bytes each."""
    level = b"]q\0"
    for _ in range(times):
        level += b"0" + kind.replace(b"%s", MARK) + b"q\0"
    return level


def zip_file(path: Path, pickle: bytes, compression: int = zipfile.ZIP_STORED, **storages: bytes) -> Path:
    """A file as `torch.save` lays it out: a pickle, and a record for each storage (named _0, _1, ...)."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + pickle + STOP)
        archive.writestr("x/byteorder", "little")
        for key, numbers in storages.items():
            archive.writestr(f"x/data/{key.removeprefix('_')}", numbers)
    return path
