"""One picture, whatever lies in the file that is named like one: decoded to RGB within bounds, or refused."""

from __future__ import annotations

import io
import os
import re
import stat
import zlib
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

ENDINGS = tuple(".jpg .jpeg .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .avif .jp2".split())
# What those endings stand for. The content decides among these, not the ending: ImageNet has a PNG named .JPEG.
# Nothing else is tried: EPS would start Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")
MAX_PIXELS = 178_956_970  # Pillow's own limit
MAX_BYTES = 1 << 29  # of a file
MAX_SCANNED = 1 << 31  # pixels times scans of a JPEG, about 3 s; encoders write some ten scans


class Encoded:
    """A picture in memory of which only the header was read, so that its size is known before it is decoded.

    Of an animation the first frame is taken; an alpha channel is left out and EXIF's orientation is not applied, as
    in timm and torchvision, on which the published accuracies stand. 16-bit grey is scaled to 8 bits (Pillow's
    conversion would clip it to white).

    Args:
        data: the file's content.
        max_pixels: that it may have.

    Attributes:
        header: Pillow's image, whose pixels are not read; for those who want to know its size.

    Raises:
        ValueError: no picture of FORMATS, more than `max_pixels` or MAX_SCANNED.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"no picture of {', '.join(FORMATS)}") from None
        if (pixels := image.width * image.height) > max_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels; expected at most {max_pixels:,}")
        if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) * pixels > MAX_SCANNED:
            raise ValueError(f"a JPEG of {image.width} x {image.height} pixels in {scans} scans")
        self.data, self.header = data, image

    def decode(self, reduction: int = 1) -> Image.Image:
        """The picture as RGB, once.

        Args:
            reduction: 1, 2, 4 or 8: a JPEG is decoded with its sides divided by it and rounded up, which takes a
                fraction of the time; other pictures stay as they are.

        Raises:
            ValueError: 32-bit numbers, whose range no file states.
            Exception: whatever the decoder raises; one that is cut short among it.
        """
        image = self.header
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        image.load()  # to the end: raises on a truncated file
        if image.format == "PNG":
            _check_png(self.data)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError(f"32-bit numbers (mode {image.mode}) without a range; save it with 8 or 16 bits")
        return image if image.mode == "RGB" else image.convert("RGB")


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture in memory as RGB; see `Encoded`, which also says what is raised."""
    return Encoded(data, max_pixels).decode()


def reduction_for(held: tuple[int, int], wanted: tuple[int, int]) -> int:
    """The largest of 1, 2, 4, 8 by which a part of a picture may be divided and still have all the pixels wanted.

    Args:
        held, wanted: two sides each, of the part as the file has it and of what becomes of it.
    """
    most = min(side // need for side, need in zip(held, wanted))
    return next((reduction for reduction in (8, 4, 2) if reduction <= most), 1)


def _check_png(data: bytes) -> None:
    """Refuse a PNG of damaged pixels, as libpng does: Pillow leaves the checksums of their chunks aside."""
    view, at = memoryview(data), 8
    while at + 8 <= len(data):
        name, end = data[at + 4 : at + 8], at + 8 + int.from_bytes(view[at : at + 4], "big")
        if name == b"IEND":
            return
        if name == b"IDAT" and zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError("damaged: the checksum of its pixels differs")
        at = end + 4


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a regular file of at most MAX_BYTES; anything else would wait for ever or never end.

    Raises:
        OSError: it is absent, too large, or a pipe, a socket, a device or a folder.
    """
    check_regular(path)
    with open(path, "rb") as file:
        return read_open(file)


def read_open(file: Any) -> bytes:
    """The content of an open file of at most MAX_BYTES.

    Raises:
        OSError: there is more.
    """
    if file.seek(0, os.SEEK_END) > MAX_BYTES:
        raise OSError(f"more than {MAX_BYTES >> 20} MiB")
    file.seek(0)
    return file.read()


def check_regular(path: str | os.PathLike) -> None:
    """Refuse what is no regular file, before it is opened.

    Raises:
        OSError: it is absent, or a pipe, a socket, a device or a folder.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")


def natural_key(name: str) -> list[Any]:
    """Sorts numbers in names by their value, as timm does: 2 before 10."""
    parts = re.split(r"(\d+)", name.lower())
    digits = [part.lstrip("0") for part in parts]
    return [(len(digits[i]), digits[i]) if i % 2 else part for i, part in enumerate(parts)]


def hidden(name: str) -> bool:
    """Whether a file or folder is there for a program, not for its user: .ipynb_checkpoints, ._1.jpg, __MACOSX."""
    return (name.startswith(".") and name != "..") or name == "__MACOSX"
