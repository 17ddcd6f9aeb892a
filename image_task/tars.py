"""Images in uncompressed tar files: each indexed once to its end, then read at random."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from image_task.sources import Picture, Source
from rmeeto.data.classes import LeftOut, in_order, numbered
from rmeeto.data.contents import by_class
from rmeeto.data.pictures import ENDINGS, MAX_BYTES, Encoded, check_regular, hidden, read_file
from rmeeto.errors import UserError

INDEX = "index.npy"  # beside tar files
PLACE = "shard", "offset", "size", "crc"  # of an image, in an index
LEAD = tarfile.BLOCKSIZE  # of an image in an index: its header
LABEL = 32  # bytes of a class number, spaces included
_LONGEST_HEADER = 2**15  # bytes of a name, or of the fields that follow a header; a path has 4,096
_SUM = 4  # bytes of an index's checksum
_NAME = 100  # bytes of a name in a header, in ASCII; what is longer or other is in a header of its own as well
_FAR = 2**62  # bytes: in no file, and of two the sum is a number still
_CRC = re.compile("crc32 ([0-9a-f]{8})")
_MANY_DIGITS = re.compile(rb"\d{100}")


@dataclass(frozen=True)
class Place:
    """Where an image lies in a tar file.

    Attributes:
        offset, size: in bytes.
        crc: its CRC-32; -1: none is known.
        lead: bytes before it that the checksum covers as well.
        name: that its header has to bear; none: any.
    """

    shard: str
    offset: int
    size: int
    crc: int = -1
    lead: int = 0
    name: bytes = b""

    def read(self) -> bytes:
        """Its content.

        Raises:
            OSError: it is too large, or the tar file is gone.
            ValueError: it is not what was written.
        """
        check_regular(self.shard)
        if self.size > MAX_BYTES:
            raise OSError(f"more than {MAX_BYTES >> 20} MiB")
        with open(self.shard, "rb") as file:
            file.seek(self.offset - self.lead)
            data = file.read(self.lead + self.size)
        if self.crc >= 0 and zlib.crc32(data) != self.crc:
            raise ValueError("damaged: its checksum differs")
        if self.name and data[:_NAME].rstrip(b"\0") != os.fsdecode(self.name).encode("ascii", "replace")[:_NAME]:
            raise ValueError("the index gives it another name than the tar file")
        return data[self.lead :]


@dataclass(frozen=True)
class Shards(Source):
    """Images in uncompressed tar files, addressed by their place in them."""

    shards: list[str]
    places: np.ndarray  # (n, 4): shard, offset in bytes, size in bytes, CRC-32 or -1
    names: np.ndarray  # (n,) bytes
    targets: np.ndarray  # (n,)
    classes: list[str]
    lead: int = 0  # bytes before an image that its checksum covers as well

    def __len__(self) -> int:
        return len(self.places)

    def place(self, index: int) -> Place:
        """Where an image lies."""
        shard, *rest = self.places[index].tolist()
        return Place(self.shards[shard], *rest, self.lead, self.names[index] if self.lead else b"")

    def open(self, index: int) -> tuple[Picture, int]:
        return Encoded(self.place(index).read()), int(self.targets[index])

    def name(self, index: int) -> str:
        return f"{self.shards[self.places[index, 0]]}:{os.fsdecode(self.names[index])}"

    def files(self) -> np.ndarray:
        return self.places[:, 0]

    def contents(self, folder: str) -> dict[str, list[Any]]:
        samples = (b"%s %d" % (name, size) for name, size in zip(self.names.tolist(), self.places[:, 2].tolist()))
        return by_class(self.classes, self.targets, samples)

    @classmethod
    def by_folder(cls, shards: list[str], *, stem_is_class: bool) -> Shards:
        """Index images whose class is the folder (or the tar inside the tar) they lie in.

        Args:
            shards: tar files.
            stem_is_class: images outside every folder belong to the class that the tar file is named after.

        Raises:
            UserError: a tar file that is not intact, or an image outside every folder.
        """
        places, names, labels, left_out = [], [], [], LeftOut()
        for number, shard in enumerate(shards):
            top = PurePosixPath(shard).stem if stem_is_class else ""
            for path, *where in _members(shard):
                if path.suffix.lower() not in ENDINGS:
                    left_out.add(f"{shard}:{path}", "other endings")
                    continue
                if not (label := path.parent.name or top):
                    raise UserError(f"{shard}: {path} lies in no class folder; expected <class>/<image>.")
                places.append((number, *where))
                names.append(os.fsencode(path))
                labels.append(label)
        left_out.say(os.path.dirname(shards[0]))
        return cls(shards, np.array(places), np.array(names), *_numbered(labels))

    @classmethod
    def by_index(cls, shards: list[str], index: Path) -> Shards:
        """Take the places of images from an index (see `entry`) in place of reading every header.

        Raises:
            UserError: a tar file that is cut, or an index that is damaged or not of these files.
        """
        try:
            data = read_file(index)
            if zlib.crc32(data[:-_SUM]).to_bytes(_SUM, "little") != data[-_SUM:]:
                raise ValueError("its checksum differs")
            if not data.startswith(b"\x93NUMPY"):
                raise ValueError("it is no array of NumPy's")
            found = np.load(io.BytesIO(data), allow_pickle=False)
            if found.ndim != 1 or found.dtype != entry(found.dtype["name"].itemsize):
                raise ValueError(f"it holds {found.dtype}")
            places = np.stack([found[name] for name in PLACE], axis=1)
            if (
                (places < 0).any()
                or (places > _FAR).any()
                or (places[:, 0] >= len(shards)).any()
                or (places[:, 1] < LEAD).any()
            ):
                raise ValueError("it leads out of the tar files")
            names = np.array(found["name"])
            labels = [os.fsdecode(name).rpartition("/")[0].rpartition("/")[2] for name in names.tolist()]
            if "" in labels:
                raise ValueError("a picture in it lies in no class folder")
        except Exception as error:  # NumPy raises nearly anything on a damaged file
            reason = str(error).partition("\n")[0] or repr(error)
            raise UserError(
                f"{index} is no index of these tar files ({reason}); remove it, or fetch it again."
            ) from None
        ends = np.zeros(len(shards), np.int64)
        np.maximum.at(ends, places[:, 0], places[:, 1] + places[:, 2])
        for shard, end in zip(shards, ends.tolist()):
            with _opened(shard) as file:
                if (size := os.fstat(file.fileno()).st_size) < end:
                    raise UserError(f"{shard} is cut: it has {size} bytes and had {end} or more; fetch it again.")
        return cls(shards, places, names, *_numbered(labels), LEAD)

    @classmethod
    def webdataset(cls, shards: list[str]) -> Shards:
        """Index WebDataset samples: <key>.jpg with its class number in <key>.cls.

        The last dot ends a key, so that it may hold dots (webdataset's own rule is the first dot; both agree where
        there is one). Of several images of a key the first by the order of ENDINGS is taken, as timm does; what
        belongs to a key with more after its dot, such as <key>.mask.png, is left out, and a line says so.

        Raises:
            UserError: a tar file that is not intact, an image without a class number, or a key that occurs twice.
        """
        places, names, targets, left_out = [], [], [], LeftOut()
        for number, shard in enumerate(shards):
            images, labels = _samples(shard, left_out)
            places += [(number, *where) for where in images.values()]
            names += map(os.fsencode, images)
            targets += [labels[key] for key in images]
        left_out.say(os.path.dirname(shards[0]))
        classes = numbered(targets, os.path.dirname(shards[0]))
        return cls(shards, np.array(places), np.array(names), np.array(targets), classes)


def entry(length: int) -> np.dtype:
    """What an index holds of an image.

    Its name, the number of its shard, offset and size in bytes, and the CRC-32 of its header and content.

    Args:
        length: bytes of the longest name.
    """
    return np.dtype([("name", f"S{max(1, length)}"), *((name, "<i8") for name in PLACE)])


def save_index(path: Path, found: np.ndarray) -> None:
    """Write an index, its own checksum behind it."""
    file = io.BytesIO()
    np.save(file, found)
    data = file.getvalue()
    path.write_bytes(data + zlib.crc32(data).to_bytes(_SUM, "little"))


def _numbered(labels: list[str]) -> tuple[np.ndarray, list[str]]:
    """Class numbers and the classes."""
    classes = in_order(labels)
    number = {name: target for target, name in enumerate(classes)}
    return np.array([number[name] for name in labels]), classes


def _samples(shard: str, left_out: LeftOut) -> tuple[dict[str, tuple[int, int, int]], dict[str, int]]:
    """Of each key: offset, size and CRC-32 of its image; its class number."""
    images: dict[str, dict[str, tuple[int, int, int]]] = {}  # by key and ending
    labels: dict[str, int] = {}
    others: dict[str, str] = {}
    with _opened(shard) as file:
        for path, offset, size, crc in _members(shard):
            key, ending = str(path.with_suffix("")), path.suffix.lower()
            if ending in ENDINGS:
                where = offset, size, crc
                twice = images.setdefault(key, {}).setdefault(ending, where) != where
            elif ending == ".cls":
                file.seek(offset)
                number = _class_number(file.read(min(size, LABEL + 1)), f"{shard}: {path}")
                twice = key in labels
                labels[key] = number
            else:
                twice, others[key] = False, f"{shard}:{path}"
            if twice:
                raise UserError(f"{shard}: {path} occurs twice; expected each key once.")
    chosen = {}
    for key, by_ending in images.items():
        if key in labels:
            chosen[key] = by_ending.pop(min(by_ending, key=ENDINGS.index))
        elif _stem(key) not in labels:
            raise UserError(f"{shard}: {key} has no class number; expected one, from 0 on, in {key}.cls.")
        for ending in by_ending:
            left_out.add(f"{shard}:{key}{ending}", "not the image of their key")
    for key in labels.keys() - chosen.keys():
        left_out.add(others.get(key, f"{shard}:{key}.cls"), "a class number without an image of a known ending")
    return chosen, labels


def _stem(key: str) -> str:
    path = PurePosixPath(key)
    return str(path.parent / path.name.partition(".")[0])


def _class_number(text: bytes, where: str) -> int:
    number = text.strip()
    if len(text) > LABEL or not number.isdigit():
        begin = text[:LABEL].decode("ascii", "replace")
        raise UserError(f"{where} holds {begin!r}; expected a class number, from 0 on, as digits.")
    return int(number)


class _Header(tarfile.TarInfo):
    """A member whose long name and further fields have a bound.

    Python before 3.11.10 searches the fields in a time that is quadratic in the length of a row of digits.
    """

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        fields = tar.fileobj.read(min(self.size, _LONGEST_HEADER))
        if self.size > _LONGEST_HEADER or _MANY_DIGITS.search(fields):
            raise tarfile.ReadError(f"a header of {self.size} bytes or with a number of 100 digits")
        tar.fileobj.seek(-len(fields), os.SEEK_CUR)
        return super()._proc_pax(tar)  # type: ignore[misc]

    def _proc_gnulong(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a name of {self.size} bytes")
        return super()._proc_gnulong(tar)  # type: ignore[misc]


Member = tuple[PurePosixPath, int, int, int]


def _members(shard: str) -> Iterator[Member]:
    """Path, offset, size in bytes and CRC-32 of every file in a tar; a tar inside it counts as a folder.

    The checksum is what `image_task.shards` has put in the place of a group's name; of others' files it is -1. Hidden
    files are left out. A damaged header would end a tar in silence: so it must end as tar files do, with a
    block of zeros and nothing after it.
    """
    try:
        with _opened(shard) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            yield from _walk(tar, PurePosixPath(), 0, os.path.getsize(shard))
    except UserError:
        raise
    except Exception as error:  # tarfile raises nearly anything on a damaged file
        raise UserError(
            f"{shard} is no intact uncompressed tar file ({str(error) or repr(error)}); fetch it again."
        ) from error


def _opened(shard: str) -> BinaryIO:
    try:
        check_regular(shard)
        return open(shard, "rb")
    except OSError as error:
        raise UserError(f"{shard} cannot be read ({error}); expected a tar file.") from None


def _walk(tar: tarfile.TarFile, folder: PurePosixPath, start: int, size: int) -> Iterator[Member]:
    while (member := tar.next()) is not None:
        tar.members = []  # would otherwise hold a kilobyte per image
        holds_data = member.isfile() or member.type not in tarfile.SUPPORTED_TYPES
        if member.size < 0 or (holds_data and member.offset_data + member.size > size) or member.issparse():
            raise tarfile.ReadError(f"{member.name} of {member.size} bytes is not there as a whole")
        path = folder / member.name
        if not member.isfile() or not path.name or any(map(hidden, path.parts)):
            continue
        if path.suffix == ".tar":
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:", tarinfo=_Header) as inner:
                yield from _walk(inner, path.with_suffix(""), start + member.offset_data, member.size)
        else:
            crc = _CRC.fullmatch(member.gname)
            yield path, start + member.offset_data, member.size, int(crc[1], 16) if crc else -1
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end at byte {tar.offset}, where a header is damaged or the file is cut")
    while rest := tar.fileobj.read(1 << 20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("more follows behind its end, such as another tar file")
