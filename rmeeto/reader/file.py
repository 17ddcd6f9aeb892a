"""A checkpoint file: torch's zip archive, or the format before it. Its tensors are views of the file's bytes."""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import shlex
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmeeto.reader.bytes import bytes_of, numbers
from rmeeto.reader.machine import BUDGET, Machine
from rmeeto.reader.values import Unknown, Unreadable, printable

DIGEST = "rmeeto.digest"  # the entry of a checkpoint with the digest of the others
_LEGACY = 0x1950A86A20F9469CFC6C  # torch's magic number of the format before zip, and its version
_VERSION = 1001
_LARGEST_INDEX = 4 * 2**20  # bytes of a zip archive's list of records; that of Vim-B with optimizer has 200,000
_THREADS = 4  # at most, for checksums: they take as long as reading
_END = struct.Struct("<4s4H2LH")  # of a zip archive: the record at its end


def read(path: str | Path, *, mapped: bool = False) -> Any:
    """What a checkpoint file holds: plain values and tensors, without running any code of it.

    Args:
        path: of a file of `torch.save`, zip archive or older.
        mapped: tensors are views of the file, which takes half the time. They do not survive that it is shortened in
            place (a new file under its name does no harm), so they are for copying at once.

    Raises:
        OSError: there is none.
        Unreadable: it is damaged (checksums and `DIGEST` are verified), no checkpoint, or holds more than plain values.
    """
    data = bytes_of(Path(path), mapped)
    try:
        content = (_read_zip if data[:2] == b"PK" else _read_legacy)(data)
        written = content.pop(DIGEST, None) if isinstance(content, dict) else None
        if written is not None and written != digest(content, 4 * len(data) + 2**26):
            raise Unreadable("it is damaged: its content has another digest than it was written with")
    except Unknown as error:
        raise Unreadable(f"{error}. If you trust its author, make it plain: {_conversion(Path(path))}") from None
    except Unreadable:
        raise
    except Exception:  # a pickle that is damaged or none raises nearly anything
        raise Unreadable("it is no checkpoint of torch, or damaged") from None
    return content


def digest(content: Any, largest: float = math.inf) -> str:
    """SHA-256 of names, values, types and shapes, and of the CRC-32 of each tensor's numbers.

    Args:
        content: plain values and tensors, in dictionaries, lists and tuples.
        largest: bytes to look at; a value that stands in it a million times is looked at as often.

    Raises:
        Unreadable: there is more, or it is nested too deeply.
    """
    found, left = hashlib.sha256(), largest

    def add(value: Any) -> None:
        nonlocal left
        left -= 64 + (value.nbytes if isinstance(value, Tensor) else 0)
        if left < 0:
            raise Unreadable("it holds the same values too many times")
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous().reshape(-1)
            raw = plain.view(torch.uint8).numpy() if len(plain) else b""
            found.update(f"{value.dtype} {tuple(value.shape)} {zlib.crc32(raw)};".encode())
        elif isinstance(value, dict | list | tuple):
            kind = next(k.__name__ for k in (dict, list, tuple) if isinstance(value, k))  # torch.Size is read as tuple
            found.update(f"{kind} {len(value)}:".encode())
            for part in value.items() if isinstance(value, dict) else value:
                add(part)
        else:
            found.update(f"{type(value).__name__} {value!r};".encode())

    try:
        add(content)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    return found.hexdigest()


def _conversion(path: Path) -> str:
    code = (
        'import torch; plain = lambda c: c.state_dict() if hasattr(c, "state_dict") else c; '
        f'c = plain(torch.load({json.dumps(str(path))}, "cpu", weights_only=False)); '
        'torch.save(plain(next((c[k] for k in ("model", "state_dict") if k in c), c)), "plain.pth")'
    )
    return f"python -c {shlex.quote(code)}"


def _read_zip(data: mmap.mmap) -> Any:
    records, checksums = _records(data)
    view = memoryview(data)
    with ThreadPoolExecutor(_THREADS) as threads:
        parts = (view[start : start + size] for start, size in records.values())
        found = threads.map(zlib.crc32, parts) if any(checksums) else iter(checksums)  # they can be left out
        try:
            return _unpickle(data, records)  # meanwhile
        finally:  # what is damaged is said to be that, whatever else came of it
            for name, right, computed in zip(records, checksums, found, strict=True):
                if right != computed:
                    raise Unreadable(f"the checksum of its record {printable(name)} differs: it is damaged")


def _unpickle(data: mmap.mmap, records: dict[str, tuple[int, int]]) -> Any:
    stem = next((name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")), None)
    if stem is None or f"{stem}constants.pkl" in records:
        raise Unreadable("it is a zip archive of another kind, such as a TorchScript program")
    start, size = records[f"{stem}byteorder"] if f"{stem}byteorder" in records else (0, 0)
    if data[start : start + size] not in (b"", b"little"):
        raise Unreadable("its numbers are in the order of another kind of machine")

    def load(key: str, dtype: torch.dtype | None, count: int) -> Tensor:
        start, size = records.get(f"{stem}data/{key}", (0, -1))
        if size != count * (dtype.itemsize if dtype else 1):
            raise Unreadable(f"it names {count} numbers where it has {max(size, 0)} bytes")
        return numbers(data, start, size, dtype)

    start, size = records[f"{stem}data.pkl"]
    if size > BUDGET:
        raise Unreadable(f"its pickle has {size} bytes; that of a checkpoint has at most {BUDGET}")
    return Machine(io.BytesIO(data[start : start + size]), load).run()


def _records(data: mmap.mmap) -> tuple[dict[str, tuple[int, int]], list[int]]:
    """Where each record of a zip archive begins and how long it is, all stored as they are; and their checksums."""
    end = data[-_END.size :]
    if len(end) < _END.size or not end.startswith(b"PK\5\6") or not end.endswith(b"\0\0"):
        raise Unreadable("it is cut, or has bytes behind its end")
    index = _END.unpack(end)[5]
    if index == 2**32 - 1:  # what does not fit stands in a record before it, of 56 bytes, and a reference of 20
        (index,) = struct.unpack("<Q", data[-_END.size - 36 : -_END.size - 28])
    if index > _LARGEST_INDEX:
        raise Unreadable("it has more records than a checkpoint")
    infos = zipfile.ZipFile(data).infolist()
    records, total = {}, 0
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise Unreadable("it is compressed, as torch.save never does")
        total += info.file_size
        if total > len(data):
            raise Unreadable("its records are larger than the file")
        lengths = struct.unpack("<2H", data[info.header_offset + 26 : info.header_offset + 30])
        start = info.header_offset + 30 + sum(lengths)
        if start + info.file_size > len(data):
            raise Unreadable("it is cut")
        if info.filename in records:
            raise Unreadable(f"it has two records {printable(info.filename)}")
        records[info.filename] = start, info.file_size
    return records, [info.CRC for info in infos]


def _read_legacy(data: mmap.mmap) -> Any:
    def none(*_: Any) -> Tensor:
        raise Unreadable("it is no checkpoint of torch, or damaged")

    magic, version, system = (Machine(data, none).run() for _ in range(3))
    if (magic, version) != (_LEGACY, _VERSION) or system.get("little_endian") is not True:
        none()
    begin = data.tell()
    kinds: dict[str, tuple[torch.dtype, int]] = {}

    def note(key: str, dtype: torch.dtype | None, count: int) -> Tensor:
        kinds[key] = dtype or torch.uint8, count
        return torch.empty(count, dtype=dtype, device="meta")

    Machine(data, note).run()  # to learn the storages' sizes, which say where each of them is
    keys = Machine(data, none).run()
    at, places = data.tell(), {}
    for key in keys:
        dtype, count = kinds[key]
        (stored,) = struct.unpack("<q", data[at : at + 8])
        places[key] = at + 8
        at += 8 + count * dtype.itemsize
        if stored != count or at > len(data):
            raise Unreadable("it is cut, or its storages have other sizes than it says")
    if at != len(data):
        raise Unreadable("it has bytes behind its end")
    data.seek(begin)

    def load(key: str, dtype: torch.dtype | None, count: int) -> Tensor:
        if kinds[key] != (dtype or torch.uint8, count):
            raise Unreadable("it names a storage as two kinds")
        return numbers(data, places[key], count * kinds[key][0].itemsize, dtype)

    return Machine(data, load).run()
