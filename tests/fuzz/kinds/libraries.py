"""The kernel library in its cache, damaged, replaced or not alone; compilers and caches that are none."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random

from rmeeto.ops import build
from tests.fuzz.case import ACCEPT, Case, Kind, Refused, Wrong
from tests.fuzz.mutate import TEXTS, some_bytes

# A stand-in for a compiler: it copies the library that is right.
GOOD = """#!/bin/sh
while [ $# -gt 1 ]; do [ "$1" != -o ] || { cp right.so "$2"; exit; }; shift; done
"""
COMPILERS = {
    "good": GOOD, "fails": "#!/bin/sh\nprintf '\\033[2Jerror: no\\n'; exit 1\n", "nothing": "#!/bin/sh\n",
    "text": "no program",
    "empty": "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ $1 != -o ] || { : >$2; exit; }; shift; done\n",
    "bytes": "#!/bin/sh\nhead -c 1000 /dev/urandom\nexit 3\n",
}  # fmt: skip

HERE = [text for text in TEXTS if not text.startswith(("/", ".."))]  # a cache within the run's folder


@cache
def _right() -> tuple[str, bytes]:
    """Name and content of the library of this machine."""
    path = build.build(build.instruction_set())
    return path.name, path.read_bytes()


def seeds() -> Mapping[str, bytes]:
    _right()
    return {"whole": b"{}", "none": b'{"library": "absent"}'}


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    about = {
        "library": rng.choice(
            (
                "changed",
                "changed",
                "changed",
                "cut",
                "zeros",
                "link",
                "pipe",
                "folder",
                "absent",
                "mode",
                "two",
            )
        ),
        "number": rng.randrange(2**32),
        "compiler": rng.choice(("good", "good", "good", *COMPILERS)),
        "mode": rng.choice((0o700, 0o700, 0o777, 0o770, 0o1777, 0o500)),
        "leftover": rng.choice((None, None, "folder", "file", "link", "pipe")),
        "cxx": rng.choice(TEXTS).strip() or None if rng.random() < 0.15 else None,
        "cache": rng.choice((*HERE, "file", "link")) if rng.random() < 0.15 else None,
    }
    return Case(json.dumps(about).encode(), "whole")


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    about = json.loads(case.data)
    name, right = _right()
    Path("right.so").write_bytes(right)
    Path("c++").write_text(COMPILERS[about.get("compiler", "good")])
    Path("c++").chmod(0o755)
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    cache = Path("cache").absolute()
    cache.mkdir()
    _put(cache / name, right, about.get("library"), Random(about.get("number")))
    if leftover := about.get("leftover"):
        _put(cache / "building-x", b"", {"file": "changed"}.get(leftover, leftover), Random(0))
    cache.chmod(about.get("mode", 0o700))
    given = {
        "CXX": about.get("cxx") or str(Path("c++").absolute()),
        "RMEETO_CACHE": about.get("cache") or str(cache),
    }
    with _environment(
        {key: value.replace("\0", "0").encode(errors="replace").decode() for key, value in given.items()}
    ):
        loaded, origin = build._load.__wrapped__()
    good = about.get("compiler", "good") == "good" and about.get("cxx") is None
    if loaded is None:
        if good:
            raise Wrong(f"no library with a compiler that works: {origin}")
        raise Refused(origin)
    for path in Path("/proc/self/maps").read_text().split("\n"):
        file = path.partition(str(cache))[1:]
        if file[0] and Path("".join(file)).is_file() and Path("".join(file)).read_bytes() != right:
            raise Wrong(f"{''.join(file)} was loaded, and is not what was built")
    if (case.right == ACCEPT or about.get("cache") is None) and about.get("mode", 0o700) == 0o700:
        if not Path(cache, name).is_file() or Path(cache, name).read_bytes() != right:
            raise Wrong(f"the cache has {[path.name for path in cache.iterdir()]}")
    return "loaded"


def _put(path: Path, data: bytes, how: str | None, rng: Random) -> None:
    match how:
        case "absent":
            return
        case "link":
            path.symlink_to("../right.so")
            return
        case "pipe":
            os.mkfifo(path)
            return
        case "folder":
            (path / "x").mkdir(parents=True)
            return
        case "cut":
            data = data[: rng.randrange(len(data))]
        case "zeros":
            at = rng.randrange(len(data))
            data = data[:at] + bytes(4096) + data[at + 4096 :]
        case "changed":
            data = some_bytes(rng, data)
        case "two":
            path.with_name(path.name.replace(".so", "0.so")).write_bytes(some_bytes(rng, data))
    path.write_bytes(data)
    if how == "mode":
        path.chmod(0o666)


@contextlib.contextmanager
def _environment(given: Mapping[str, str]):
    before = {key: os.environ.get(key) for key in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


KIND = Kind(seeds, mutate, check, weight=4, batch=10, programs=("c++",))
