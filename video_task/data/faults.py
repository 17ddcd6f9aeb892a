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
SEGMENT, CLUSTER, GROUP = 0x18538067, 0x1F43B675, 0xA0  # of a Matroska file: all of it, some frames, one
WITHIN = {  # what these hold (RFC 9559), beside what is allowed anywhere: nothing, and a checksum
    None: {0x1A45DFA3, SEGMENT},
    SEGMENT: {CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367},
    CLUSTER: {GROUP, 0xA3, 0xAF, 0xE7, 0xA7, 0xAB, 0x5854},
    GROUP: {0xA1, 0x75A1, 0x9B, 0xFA, 0xFB, 0xA4, 0x75A2, 0x8E},
}
ANYWHERE = {0xEC, 0xBF}
NUMBERS = {0xE7, 0xA7, 0xAB, 0x9B, 0xFA, 0xFB, 0x75A2}  # of at most 8 bytes

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
    segment = head.find(SEGMENT.to_bytes(4, "big"))
    if head[:4] != b"\x1a\x45\xdf\xa3" or not 0 < segment < len(head) - 12:
        return 0
    size, at = _size(head, segment + 4)
    return 0 if size is None else at + size


def _size(data: bytes, at: int) -> tuple[int | None, int]:
    """The size of a Matroska element, None for an unknown one, and where its content begins."""
    width = 9 - data[at].bit_length()  # the leading zeros say how many bytes the number has
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(data[at : at + width], "big") & unknown
    return None if size == unknown else size, at + width


def whole_riff(path: str | os.PathLike) -> bool:
    """Whether every chunk of an AVI file leads to another one, up to the size that the file says it has.

    Among the frames there are chunks of the file's streams alone: FFmpeg steps over others, and so over a frame whose
    name is damaged.
    """
    with open(path, "rb") as file:
        data = memoryview(file.read())
    at, end = 0, min(len(data), promised_size(path) or len(data))
    streams = frames = 0  # how many there are, and where the frames end
    while at + 8 <= end:
        head = bytes(data[at : at + 12])
        name, size = head[:4], int.from_bytes(head[4:8], "little")
        if not (name.isascii() and name.decode().isprintable()):
            return False
        of_stream = name[:2].isdigit() and int(name[:2]) < streams
        if at < frames and not (of_stream or name in (b"LIST", b"JUNK") or name[:2] == b"ix"):
            return False
        if name == b"LIST":
            streams += head[8:] == b"strl"
            frames = at + size if head[8:] == b"movi" else frames
        at += 12 if name in (b"RIFF", b"LIST") else 8 + size + size % 2
    return at <= end + 1  # the last may lack the byte that makes its size even


def whole_matroska(path: str | os.PathLike) -> bool:
    """Whether a Matroska file holds, up to the size that it says it has, nothing but what belongs there.

    FFmpeg steps over other elements, and so over a frame whose mark is damaged.
    """
    end = promised_size(path) or os.path.getsize(path)
    with open(path, "rb") as file:
        return _end_of(file.fileno(), None, 0, end) == end


def _end_of(descriptor: int, parent: int | None, at: int, end: int, sized: bool = True) -> int:
    """Where the content of a Matroska element ends, -1 where something does not belong there.

    One without a size ends before something that it cannot hold.
    """
    while at < end:
        head = os.pread(descriptor, 12, at).ljust(12, b"\0")
        width = 9 - head[0].bit_length()
        mark = int.from_bytes(head[:width], "big")
        if mark not in WITHIN[parent] | ANYWHERE:
            return -1 if sized else at
        size, start = _size(head, width)
        at, stop = at + start, end if size is None else at + start + size
        if stop > end or (mark in NUMBERS and stop - at > 8) or (size is None and mark not in WITHIN):
            return -1
        at = _end_of(descriptor, mark, at, stop, size is not None) if mark in WITHIN else stop
        if at < 0:
            return -1
    return at


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
