"""The bytes of a file, and tensors that are views of them."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path

import torch
from torch import Tensor

from rmeeto.reader.values import Unreadable

_POPULATE_READ = 22  # madvise's, of Linux 5.14: all pages at once instead of a fault for every sixteen


def bytes_of(path: Path, mapped: bool) -> mmap.mmap:
    """The bytes of a regular file.

    Args:
        path: of the file.
        mapped: the file itself in memory, not a copy. It must not be shortened while it is used.

    Raises:
        OSError: there is none.
        Unreadable: it is empty or no regular file.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Unreadable("it is no regular file")
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise Unreadable("it is empty")
        if mapped:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writable, as torch wants it, for us alone
            with contextlib.suppress(OSError):  # a system without it
                data.madvise(_POPULATE_READ)
            return data
        data = mmap.mmap(-1, size)
        if file.readinto(data) != size:
            raise Unreadable("it becomes shorter while it is read")
        return data


def numbers(data: mmap.mmap, start: int, nbytes: int, dtype: torch.dtype | None) -> Tensor:
    """(n,) numbers of the file, or its bytes; in place where they are aligned."""
    if not nbytes:
        return torch.empty(0, dtype=dtype or torch.uint8)
    found = torch.frombuffer(data, dtype=torch.uint8, count=nbytes, offset=start)
    if dtype is torch.bool:
        return found != 0
    kind = dtype or torch.uint8
    return (found.clone() if start % kind.itemsize else found).view(kind)
