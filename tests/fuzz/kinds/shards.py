"""Tar files of images: damaged ones, and members of every kind that the format knows."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from image_task.config import DataConfig
from image_task.datasets import load_sources
from rmeeto.errors import UserError
from tests.fuzz.case import ACCEPT, SAME, Case, Kind, Refused, Wrong
from tests.fuzz.mutate import NUMBERS, OUTSIDE, damage, some_bytes, some_json, some_text
from tests.fuzz.programs import ODD, files_of, folder, unpack

COUNT = 8
INFO = b'{"splits": {"train": {"filenames": ["train.tar"], "num_samples": 8}, "val": {"filenames": ["val.tar"]}}}'
TYPES = [bytes([kind]) for kind in b"01234567LKxgSMVX?"]
PAX = {"size": "3", "path": "../../outside/x.png", "GNU.sparse.size": "9", "GNU.sparse.map": "0,9",
"GNU.sparse.major": "1",
       "GNU.sparse.minor": "0", "GNU.sparse.name": "x", "linkpath": OUTSIDE, "mtime": "x", "uid": "-1"}  # fmt: skip


@cache
def _png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _members(layout: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    found = []
    for number in range(COUNT):
        if layout == "tar":
            found.append((f"{('ant', 'bee')[number % 2]}/{number}.png", _png(number)))
        else:
            found += [(f"{number:04}.png", _png(number)), (f"{number:04}.cls", b"%d" % (number % 2))]
    return [(_info(name, data), data) for name, data in found]


def _info(name: str, data: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], layout: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    for info, data in members:
        file.write(info.tobuf(layout, "utf-8", "surrogateescape"))
        file.write(data + bytes(-len(data) % 512))
    return file.getvalue() + bytes(1024)


def seeds() -> Mapping[str, bytes]:
    plain, wds = (_tar(_members(layout)) for layout in ("tar", "wds"))
    inner = _tar(_members("tar")[:2])
    nested = _tar([*_members("tar")[2:], (_info("ant.tar", inner), inner)])
    return {
        "tar": folder({"train.tar": plain, "val.tar": plain}),
        "tar nested": folder({"train.tar": nested, "val.tar": nested}),
        "wds": folder({"train.tar": wds, "val.tar": wds}),
        "wds listed": folder({"train.tar": wds, "val.tar": wds, "_info.json": INFO}),
    }


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    seed = rng.choice(list(seeds))
    files, layout = files_of(seeds[seed]), seed.split()[0]
    name, choice = rng.choice(("train.tar", "val.tar")), rng.random()
    if choice < 0.35:
        files[name] = damage(rng, files[name])
        return Case(folder(files), seed, SAME)
    if choice < 0.5:
        files[name] = some_bytes(rng, files[name])
    elif choice < 0.55:
        files[name] = rng.choice((*ODD, None))
        files = {key: content for key, content in files.items() if content is not None}
    elif "listed" in seed and choice < 0.7:
        files["_info.json"] = some_json(rng, INFO, {"filenames": [OUTSIDE, "/dev/zero", "x.tar"], "splits": 1})
    else:
        members = _members(layout)
        for _ in range(rng.choice((1, 1, 3))):
            _change(rng, members)
        try:
            files[name] = _tar(members, rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)))
        except (ValueError, OverflowError, UnicodeError):  # what the format cannot say
            files[name] = some_bytes(rng, files[name])
    return Case(folder(files), seed)


def _change(rng: Random, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    at = rng.randrange(len(members))
    info, data = members[at]
    match rng.randrange(7):
        case 0:
            info.type = rng.choice(TYPES)
            info.linkname = rng.choice((OUTSIDE, "/etc/passwd", "0.png", "ant/0.png"))
        case 1:
            info.size = int(rng.choice(NUMBERS[:21])) if rng.random() < 0.8 else -info.size - rng.randrange(2000)
        case 2:
            odd = some_text(rng, [info.name, OUTSIDE, "ant/.hidden.png", "__MACOSX/x.png", "ant/0.PNG", "a.b.png"])
            info.name = odd.replace("\0", "0").encode(errors="replace").decode() * rng.choice((1, 1, 1, 2000))
        case 3:
            info.pax_headers = {key: PAX[key] for key in rng.sample(sorted(PAX), rng.randrange(1, 4))}
        case 4:
            changed = rng.choice((b"", b"-1", b"9" * 5000, b" 1\n", b"x", b"1.0", b"1000000000", some_bytes(rng, data)))
            members[at] = (_info(info.name, changed), changed)
        case 5:
            members.insert(rng.randrange(len(members)), members[at])
        case 6:
            del members[at]
            members.extend([(_info("ant/x.png", data), data)] if not members else [])


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    layout = case.seed.split()[0]
    unpack(case.data, Path("d"))
    try:
        sources = load_sources(DataConfig(data_set=layout, data_path="d"), seed=0)
    except UserError as error:
        raise Refused(str(error)) from None
    unreadable = 0
    for source in sources:
        if case.right in (SAME, ACCEPT) and len(source) != COUNT:
            raise Wrong(f"{len(source)} of {COUNT} images")
        for index in range(len(source)):
            name = source.name(index)
            try:
                picture, target = source.read(index)
            except MemoryError:
                raise
            except Exception:
                unreadable += 1
                continue
            if not 0 <= target < len(source.classes):
                raise Wrong(f"{name} has class {target} of {len(source.classes)}")
            if case.right in (SAME, ACCEPT):
                number = int("".join(c for c in Path(name.rpartition(":")[2]).name if c.isdigit()))
                if picture.tobytes() != Image.open(io.BytesIO(_png(number))).tobytes():
                    raise Wrong(f"{name} has other pixels")
                if layout == "tar" and source.classes[target] != ("ant", "bee")[number % 2]:
                    raise Wrong(f"{name} is in class {source.classes[target]}")
    if case.right == ACCEPT and unreadable:
        raise Wrong(f"{unreadable} images are unreadable")
    return f"{len(sources[0])} images, {unreadable} unreadable"


KIND = Kind(seeds, mutate, check, weight=15, batch=40)
