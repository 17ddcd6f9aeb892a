"""Figures, documents and their data stay together: a picture holds a digest of the files that it was drawn from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).resolve().parents[1]
MISSING = "not yet measured"
_KEY = "Source"  # of PNG's texts


def between(text: str, begin: str, end: str, content: str) -> str:
    """A document with other content between two of its lines.

    Raises:
        ValueError: it has not both.
    """
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the document has no place for a table: {begin} ... {end}")
    return f"{head}{begin}\n\n{content}\n\n{end}{tail}"


def digest(data: Sequence[Path]) -> str:
    """Names and contents of files, in their order, in 16 letters."""
    found = hashlib.sha256()
    for path in data:
        content = path.read_bytes()
        found.update(f"{path.parent.name}/{path.name} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def save(figure: Any, path: Path, data: Sequence[Path], dpi: int = 130) -> None:
    """Write a matplotlib figure, or a Pillow image, with the digest of its data."""
    if isinstance(figure, Image.Image):
        texts = PngInfo()
        texts.add_text(_KEY, digest(data))
        figure.save(path, pnginfo=texts, optimize=True)
    else:
        figure.savefig(path, dpi=dpi, metadata={_KEY: digest(data), "Software": None})


def recorded(path: Path) -> str | None:
    """The digest that a picture holds."""
    with Image.open(path) as image:
        return image.info.get(_KEY)
