"""Where labelled images lie: files, arrays, timm's readers; all with random access (tar files: tars.py)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from rmeeto.data.contents import by_class, of_files
from rmeeto.data.pictures import Encoded, read_file, read_open

Picture = Encoded | Image.Image


class Source(Protocol):
    """Labelled images with random access, which is what exact resuming and exact evaluation stand on."""

    classes: list[str]

    def __len__(self) -> int: ...

    def open(self, index: int) -> tuple[Picture, int]:
        """The image, decoded to RGB or not yet, and its class. Raises what `rmeeto.data.pictures` raises."""

    def name(self, index: int) -> str:
        """What a message calls this image."""

    def contents(self, folder: str) -> dict[str, list[Any]]:
        """What there is of each class; see `rmeeto.data.contents`. `folder`: the data set's, which may move."""

    def files(self) -> np.ndarray | None:
        """(n,) the number of the file that each image lies in, where a file holds many of them."""
        return None

    def digest(self) -> bytes | None:
        """Of all images and classes, where they are in memory; others may change between two runs."""
        return None

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image, fully decoded to RGB, and its class."""
        picture, target = self.open(index)
        return decoded(picture), target


def decoded(picture: Picture, reduction: int = 1) -> Image.Image:
    """A picture of a source as RGB; `reduction` as of `Encoded.decode`, of what is not decoded yet."""
    return picture.decode(reduction) if isinstance(picture, Encoded) else picture


def header(picture: Picture) -> Image.Image:
    """Of a picture of a source, what tells its size."""
    return picture.header if isinstance(picture, Encoded) else picture


@dataclass(frozen=True)
class Files(Source):
    """Images in files. The names are one NumPy array, so that workers share its memory with their parent."""

    paths: np.ndarray  # (n,) bytes
    targets: np.ndarray  # (n,)
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> tuple[Picture, int]:
        return Encoded(read_file(self.name(index))), int(self.targets[index])

    def name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def contents(self, folder: str) -> dict[str, list[Any]]:
        return by_class(self.classes, self.targets, of_files(self.paths, folder))

    @classmethod
    def of(cls, samples: list[tuple[str, int]], classes: list[str]) -> Files:
        paths, targets = zip(*samples)
        return cls(np.array([os.fsencode(path) for path in paths]), np.array(targets), classes)


@dataclass(frozen=True)
class Arrays(Source):
    """Images in memory: (n, height, width) grey or (n, height, width, 3), uint8."""

    images: np.ndarray
    targets: np.ndarray  # (n,)
    classes: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> tuple[Picture, int]:
        return Image.fromarray(self.images[index]).convert("RGB"), int(self.targets[index])

    def name(self, index: int) -> str:
        return f"image {index}"

    def contents(self, folder: str) -> dict[str, list[Any]]:
        return by_class(self.classes, self.targets, (image.tobytes() for image in self.images))

    def digest(self) -> bytes:
        found = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        for array in (self.images, self.targets):
            found.update(np.ascontiguousarray(array))
        return found.digest()


@dataclass(frozen=True)
class Part(Source):
    """Some of the images of another source."""

    source: Source
    indices: np.ndarray  # (n,)

    @property
    def classes(self) -> list[str]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def open(self, index: int) -> tuple[Picture, int]:
        return self.source.open(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def files(self) -> np.ndarray | None:
        found = self.source.files()
        return None if found is None else found[self.indices]

    def digest(self) -> bytes | None:
        whole = self.source.digest()
        return None if whole is None else hashlib.sha256(whole + self.indices.tobytes()).digest()

    def contents(self, folder: str) -> dict[str, list[Any]]:
        return {**self.source.contents(folder), "images left out": [len(self.source) - len(self)]}


@dataclass(frozen=True)
class Reader(Source):
    """A random-access reader of timm, which gives an open image file and a target for every index."""

    reader: Any
    classes: list[str]

    def __len__(self) -> int:
        return len(self.reader)

    def open(self, index: int) -> tuple[Picture, int]:
        file, target = self.reader[index]
        with file:
            return Encoded(read_open(file)), int(target)

    def name(self, index: int) -> str:
        return str(self.reader.filename(index) or f"image {index}")

    def contents(self, folder: str) -> dict[str, list[Any]]:
        names = (os.fsencode(self.name(index)) for index in range(len(self)))  # a class needs the image opened
        return by_class(["of any"], [0] * len(self), names)
