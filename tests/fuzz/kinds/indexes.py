"""The index beside tar shards: damaged ones, those of a crafted header, and rows that lead elsewhere."""

from __future__ import annotations

import io
import pickle
import tempfile
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from image_task import shards
from image_task.config import DataConfig
from image_task.datasets import load_sources
from image_task.tars import INDEX, PLACE, Shards, entry
from rmeeto.errors import UserError
from tests.fuzz.case import ACCEPT, ANY, SAME, Case, Kind, Refused, Wrong
from tests.fuzz.kinds.shards import COUNT, _png
from tests.fuzz.mutate import NUMBERS, OUTSIDE, some_bytes, some_text
from tests.fuzz.programs import ODD, files_of, folder, unpack

CLASSES = ("ant", "bee")
LONG = "long" * 30  # a folder whose pictures' names are longer than a header's place for them
PLACES = (*NUMBERS[:21], 2**63 - 1, 2**63 - 512, -(2**63), 512, 1024, 2560)
SHAPES = (
    "()",
    "(0,)",
    "(-1,)",
    "(10**12,)",
    f"({10**12},)",
    f"({2**63},)",
    "(8, 1)",
    "(2, 4)",
    f"({2**32}, {2**32})",
    "8",
)


class _Runs:
    """Runs a program where it is unpickled."""

    def __reduce__(self):
        return exec, ("open('owned', 'w')",)


@cache
def _made() -> dict[str, bytes]:
    """Shards of four pictures, eight for training and eight for validation."""
    with tempfile.TemporaryDirectory() as name:
        for split in ("train", "val"):
            for number in range(COUNT):
                path = Path(name, "folder", split, LONG if number == 7 else "", CLASSES[number % 2], f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_png(number))
        made = Path(name, "made")
        shards.make(Path(name, "folder"), made, shards.Recipe(size=4))
        return {str(path.relative_to(made)): path.read_bytes() for path in sorted(made.rglob("*.*"))}


def seeds() -> Mapping[str, bytes]:
    return {"made": folder(_made())}


def _summed(data: bytes) -> bytes:
    """With its checksum, which anyone can compute."""
    return data + zlib.crc32(data).to_bytes(4, "little")


def _saved(found: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, found, allow_pickle=True)
    return file.getvalue()


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    files, name = files_of(seeds["made"]), f"{rng.choice(('train', 'val'))}/{INDEX}"
    data, right = files[name][:-4], ANY
    match rng.randrange(6):
        case 0:
            files[name], right = some_bytes(rng, files[name]), SAME
        case 1:
            files[name] = rng.choice((*ODD, b"PK\3\4"))
        case 2:
            files[name] = _summed(some_bytes(rng, data))
        case 3:
            files[name] = _summed(_header(rng, data))
        case 4:
            files[name] = _summed(_other(rng, np.load(io.BytesIO(data))))
        case 5:
            found = np.load(io.BytesIO(data))
            for _ in range(rng.choice((1, 1, 2, 8))):
                found = _moved(rng, found)
            files[name] = _summed(_saved(found))
    if rng.random() < 0.1:
        name, other = rng.choice([key for key in files if key.endswith("tar")]), rng.choice([*files])
        files[name] = rng.choice((files[other], files[name][:-4096], some_bytes(rng, files[name])))
        right = ANY
    return Case(folder(files), "made", right)


def _header(rng: Random, data: bytes) -> bytes:
    """A header that claims another type, shape or order, or is no header."""
    length = int.from_bytes(data[8:10], "little")
    text = data[10 : 10 + length].decode("latin1")
    start = text.index("'shape': ") + len("'shape': ")
    match rng.randrange(5):
        case 0:
            text = text[:start] + rng.choice(SHAPES) + text[text.index(")", start) + 1 :]
        case 1:
            text = text.replace("False", rng.choice(("True", "None", "0", "[]")))
        case 2:
            text = text.replace(
                rng.choice(("'<i8'", "|S")), rng.choice(("'|O'", "'<f8'", "'|V0'", "'<i4'", "|U", "'>i8'"))
            )
        case 3:
            text = rng.choice(
                ("(" * 9000, "-" * 9000 + "1", "{" + "'a':{" * 2000, "exec('1')", text * 60, "\x1b]0;t\x07", "")
            )
        case 4:
            text = some_bytes(rng, text.encode()).decode("latin1")
    raw = text.encode("latin1") + b"\n"
    claimed = len(raw) if rng.random() < 0.9 else rng.randrange(2**16)
    return data[:8] + min(claimed, 2**16 - 1).to_bytes(2, "little") + raw + data[10 + length :]


def _other(rng: Random, found: np.ndarray) -> bytes:
    """What NumPy can write, and is no index."""
    match rng.randrange(5):
        case 0:
            return _saved(np.array([_Runs()] * 8, object))
        case 1:
            return pickle.dumps(_Runs())
        case 2:
            file = io.BytesIO()
            np.savez(file, index=found)
            return file.getvalue()
        case 3:
            kind = found.dtype.descr[: rng.randrange(1, 5)] + [("crc", rng.choice(("<f8", ">i8", "<u8", "<i8", "O")))]
            return _saved(np.zeros(8, kind))
    return _saved(rng.choice((found["name"], found[:0], found[:, None], np.float64(3), np.asfortranarray(found))))


def _moved(rng: Random, found: np.ndarray) -> np.ndarray:
    """A row of another place, name or checksum; one that is missing or there twice."""
    at, to, column = rng.randrange(len(found)), rng.randrange(len(found)), rng.choice((*PLACE, "name"))
    match rng.randrange(6):
        case 0 if column != "name":
            found[column][at] = (int(rng.choice(PLACES)) + 2**63) % 2**64 - 2**63
        case 1:
            found[[at, to]] = found[[to, at]]
        case 2 | 3:
            found[column][[at, to]] = found[column][[to, at]]
        case 4:
            odd = some_text(rng, ["ant/0.png", "bee/0.png", "0.png", "../0.png", OUTSIDE]).encode(errors="replace")[
                :300
            ]
            found = found.astype(entry(max(len(odd), found.dtype["name"].itemsize)))
            found["name"][at] = odd
        case 5:
            return (
                np.delete(found, at)
                if rng.random() < 0.5 and len(found) > 1
                else np.concatenate([found, found[at : at + 1]])
            )
    return found


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    unpack(case.data, Path("d"))
    try:
        sources = load_sources(DataConfig(data_set="tar", data_path="d"), seed=0)
    except UserError as error:
        raise Refused(str(error)) from None
    if Path("owned").exists():
        raise Wrong("code of the index was run")
    counts = [_read(source, case.right) for source in sources]
    return f"{counts} pictures"


def _read(source: Shards, right: str) -> int:
    """How many pictures can be read; each is what its name says."""
    read = 0
    for index in range(len(source)):
        name = source.name(index)
        try:
            picture, target = source.read(index)
        except MemoryError:
            raise
        except Exception:
            continue
        read += 1
        number = int(Path(name).stem)
        if picture.tobytes() != _pixels(number):
            raise Wrong(f"{name} has other pixels")
        if source.classes[target] != CLASSES[number % 2]:
            raise Wrong(f"{name} is in class {source.classes[target]}")
    if right in (SAME, ACCEPT) and (read, len(source)) != (COUNT, COUNT):
        raise Wrong(f"{read} of {len(source)} pictures of {COUNT}, without a word")
    return read


@cache
def _pixels(number: int) -> bytes:
    return Image.open(io.BytesIO(_png(number))).convert("RGB").tobytes()


KIND = Kind(seeds, mutate, check, weight=8, batch=40, may_read=True)
