"""Where labelled images lie: files, arrays, tar shards, timm's readers; all with random access."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
from PIL import Image

from rmeeto.data.contents import by_class, of_files
from rmeeto.data.pictures import ENDINGS, check_regular, decode, natural_key, read_file, read_open
from rmeeto.errors import UserError


class Source(Protocol):
    """Labelled images with random access, which is what exact resuming and exact evaluation stand on."""

    classes: list[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image, fully decoded to RGB, and its class. Raises what `rmeeto.data.pictures` raises."""

    def name(self, index: int) -> str:
        """What a message calls this image."""

    def contents(self, folder: str) -> dict[str, list[Any]]:
        """What there is of each class; see `rmeeto.data.contents`. `folder`: the data set's, which may move."""


@dataclass(frozen=True)
class Files:
    """Images in files. The names are one NumPy array, so that workers share its memory with their parent."""

    paths: np.ndarray  # (n,) bytes
    targets: np.ndarray  # (n,)
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return decode(read_file(self.name(index))), int(self.targets[index])

    def name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def contents(self, folder: str) -> dict[str, list[Any]]:
        return by_class(self.classes, self.targets, of_files(self.paths, folder))

    @classmethod
    def of(cls, samples: list[tuple[str, int]], classes: list[str]) -> Files:
        paths, targets = zip(*samples)
        return cls(np.array([os.fsencode(path) for path in paths]), np.array(targets), classes)


@dataclass(frozen=True)
class Arrays:
    """Images in memory: (n, height, width) grey or (n, height, width, 3), uint8."""

    images: np.ndarray
    targets: np.ndarray  # (n,)
    classes: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]).convert("RGB"), int(self.targets[index])

    def name(self, index: int) -> str:
        return f"image {index}"

    def contents(self, folder: str) -> dict[str, list[Any]]:
        return by_class(self.classes, self.targets, (image.tobytes() for image in self.images))


@dataclass(frozen=True)
class Reader:
    """A random-access reader of timm, which gives an open image file and a target for every index."""

    reader: Any
    classes: list[str]

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> tuple[Image.Image, int]:
        file, target = self.reader[index]
        with file:
            return decode(read_open(file)), int(target)

    def name(self, index: int) -> str:
        return str(self.reader.filename(index) or f"image {index}")

    def contents(self, folder: str) -> dict[str, list[Any]]:
        names = (
            os.fsencode(self.name(index)) for index in range(len(self))
        )  # a class needs the image opened
        return by_class(["of any"], [0] * len(self), names)


@dataclass(frozen=True)
class Shards:
    """Images in uncompressed tar files, addressed by their place in them."""

    shards: list[str]
    places: np.ndarray  # (n, 3): shard, offset in bytes, size in bytes
    names: np.ndarray  # (n,) bytes
    targets: np.ndarray  # (n,)
    classes: list[str]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> tuple[Image.Image, int]:
        shard, offset, size = self.places[index].tolist()
        check_regular(self.shards[shard])
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            return decode(file.read(size)), int(self.targets[index])

    def name(self, index: int) -> str:
        return f"{self.shards[self.places[index, 0]]}:{os.fsdecode(self.names[index])}"

    def contents(self, folder: str) -> dict[str, list[Any]]:
        samples = (
            b"%s %d" % (name, size) for name, size in zip(self.names.tolist(), self.places[:, 2].tolist())
        )
        return by_class(self.classes, self.targets, samples)

    @classmethod
    def by_folder(cls, shards: list[str], *, stem_is_class: bool) -> Shards:
        """Index images whose class is the folder (or the tar inside the tar) they lie in.

        Args:
            shards: tar files.
            stem_is_class: images outside every folder belong to the class that the tar file is named after.
        """
        places, names, labels = [], [], []
        for number, shard in enumerate(shards):
            top = PurePosixPath(shard).stem if stem_is_class else ""
            for path, offset, size in _members(shard):
                if path.suffix.lower() not in ENDINGS:
                    continue
                if not (label := path.parent.name or top):
                    raise UserError(f"{shard}: {path} lies in no class folder; expected <class>/<image>.")
                places.append((number, offset, size))
                names.append(os.fsencode(path))
                labels.append(label)
        classes = sorted(set(labels), key=natural_key)
        index = {name: target for target, name in enumerate(classes)}
        return cls(
            shards, np.array(places), np.array(names), np.array([index[name] for name in labels]), classes
        )

    @classmethod
    def webdataset(cls, shards: list[str]) -> Shards:
        """Index WebDataset samples: <key>.jpg with its class number in <key>.cls.

        Raises:
            UserError: an image without class number.
        """
        places, names, targets = [], [], []
        for number, shard in enumerate(shards):
            images: dict[str, tuple[int, int, int]] = {}
            labels: dict[str, int] = {}
            with open(shard, "rb") as file:
                for path, offset, size in _members(shard):
                    stem, _, kind = path.name.partition(".")
                    key = str(path.parent / stem)
                    if f".{kind.lower()}" in ENDINGS:
                        images[key] = number, offset, size
                    elif kind == "cls":
                        file.seek(offset)
                        labels[key] = int(file.read(size))
            bare = next((key for key in images if labels.get(key, -1) < 0), None)
            if bare is not None:
                raise UserError(
                    f"{shard}: {bare} has no class number; expected one, from 0 on, in {bare}.cls."
                )
            places += images.values()
            names += map(os.fsencode, images)
            targets += map(labels.get, images)
        return cls(shards, np.array(places), np.array(names), np.array(targets), numbered(targets))


def numbered(targets: Iterable[int]) -> list[str]:
    """Names for classes that are only numbered."""
    return [str(number) for number in range(max(targets, default=-1) + 1)]


def _members(shard: str) -> Iterator[tuple[PurePosixPath, int, int]]:
    """Path, offset and size in bytes of every file in a tar; a tar inside it counts as a folder."""
    try:
        with tarfile.open(shard, "r:") as tar:
            yield from _walk(tar, PurePosixPath(), 0)
    except tarfile.TarError as error:
        raise UserError(f"{shard} is no intact uncompressed tar file ({error}); fetch it again.") from error


def _walk(
    tar: tarfile.TarFile, folder: PurePosixPath, start: int
) -> Iterator[tuple[PurePosixPath, int, int]]:
    while (member := tar.next()) is not None:
        tar.members = []  # would otherwise hold a kilobyte per image
        path = folder / member.name
        if not member.isfile():
            continue
        if path.suffix == ".tar":
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                yield from _walk(inner, path.with_suffix(""), start + member.offset_data)
        else:
            yield path, start + member.offset_data, member.size
