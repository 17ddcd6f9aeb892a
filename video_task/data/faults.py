"""Damage that FFmpeg reads past as well as it can: what it says of it, and what it does not say."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import av

Errors = list[tuple[int, str, str]]  # level, part of FFmpeg, message
ABSENT = (  # reference pictures, as a decoder misses them that starts at an open group of pictures
    "mmco: unref short failure",
    "Missing reference picture",
    "reference picture missing",
    "co located POCs unavailable",
)

_lock = threading.Lock()
_readers = 0
_found: tuple[int | None, bool] = (None, True)


@contextmanager
def heard() -> Iterator[Errors]:
    """A list to which FFmpeg's errors of this thread are added; nothing is printed.

    Not for decoders with threads of their own, which would wait for Python while Python waits for them.
    """
    global _readers, _found
    with _lock:
        if not _readers:
            _found = av.logging.get_level(), av.logging.get_skip_repeated()
            av.logging.set_skip_repeated(False)  # else the same error of the next file would be left out
            av.logging.set_level(av.logging.ERROR)
        _readers += 1
    try:
        with av.logging.Capture() as lines:
            yield lines
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                av.logging.set_level(_found[0])
                av.logging.set_skip_repeated(_found[1])


def complaint(errors: Errors, part: str, *, after_seek: bool = False) -> str | None:
    """The first error of this part of FFmpeg, a demuxer or a decoder.

    Args:
        errors: as heard.
        part: name of the demuxer or decoder.
        after_seek: leave out what is said of pictures before the key frame that decoding has started at.
    """
    said = (message.strip() for _, name, message in errors if name == part)
    return next((text for text in said if not (after_seek and text.startswith(ABSENT))), None)


def promised_size(path: str | os.PathLike) -> int:
    """Bytes that an AVI or Matroska file says it has, which FFmpeg does not check; 0 where it does not say."""
    with open(path, "rb") as file:
        head = file.read(128)
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return 0 if size == 0xFFFFFFFF else size + 8
    segment = head.find(b"\x18\x53\x80\x67")
    if head[:4] != b"\x1a\x45\xdf\xa3" or not 0 < segment < len(head) - 12:
        return 0
    start = segment + 4
    width = 9 - head[start].bit_length()  # the leading zeros say how many bytes the number has
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(head[start : start + width], "big") & unknown
    return 0 if size == unknown else start + width + size


def whole_riff(path: str | os.PathLike) -> bool:
    """Whether every chunk of an AVI file leads to another one, up to the size that the file says it has."""
    with open(path, "rb") as file:
        data = memoryview(file.read())
    at, end = 0, min(len(data), promised_size(path) or len(data))
    while at + 8 <= end:
        name, size = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "little")
        if not (name.isascii() and name.decode().isprintable()):
            return False
        at += 12 if name in (b"RIFF", b"LIST") else 8 + size + size % 2
    return at <= end + 1  # the last may lack the byte that makes its size even


def whole_stream(path: str | os.PathLike) -> bool:
    """Whether every packet of a transport stream, from the first one on, begins with its mark."""
    with open(path, "rb") as file:
        data = file.read()
    for size in (188, 192, 204):  # plain, with a time stamp, with error correction
        starts = range(min(size, len(data)))
        first = next((at for at in starts if data[at : at + 5 * size : size] == b"G" * 5), None)
        if first is not None:
            marks = data[first::size]
            return marks == b"G" * len(marks)
    return True
