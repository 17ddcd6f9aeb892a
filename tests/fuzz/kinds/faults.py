"""No inputs but faults: each of them has to be a finding."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random

from tests.fuzz.case import ANY, Case, Kind, Refused, Wrong
from tests.fuzz.mutate import OUTSIDE, OWN, PORT


def _busy() -> None:
    while True:
        pass


def _refuse(text: str) -> None:
    raise Refused(text)


def _wrong() -> None:
    raise Wrong("2 for 1")


def _read_natively() -> None:
    os.close(ctypes.CDLL(None).open(OUTSIDE.encode(), os.O_RDONLY))


FAULTS = {
    "crash": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(0),
    "busy": _busy,
    "waiting": lambda: time.sleep(1000),
    "memory": lambda: len(bytes(3 << 30)),
    "exception": lambda: [].pop(),
    "wrong": _wrong,
    "long refusal": lambda: _refuse("a\n" * 10),
    "empty refusal": lambda: _refuse(""),
    "control character": lambda: print("\x1b[2J"),
    "traceback": lambda: print("Traceback (most recent call last):", file=sys.stderr),
    "connection": lambda: socket.create_connection((OWN, PORT), timeout=1).close(),
    "look-up": lambda: socket.gethostbyname("localhost"),
    "read beside": _read_natively,
    "written beside": lambda: Path("../outside/new").write_text(""),
    "written elsewhere": lambda: open("/dev/shm/rmeeto-fuzz", "ab").close(),
    "removed": lambda: Path("/proc/rmeeto-fuzz").unlink(missing_ok=True),
    "program": lambda: subprocess.run(["true"], check=True),
    "honest": lambda: _refuse("an honest input"),
}
HARMLESS = ("nothing", "a refusal")


def seeds() -> Mapping[str, bytes]:
    return {"honest": b""}


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    return Case(b"", rng.choice(list(FAULTS)), ANY)


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    if case.seed == "a refusal":
        raise Refused("as it should be")
    if case.seed != "nothing":
        FAULTS[case.seed]()
    if not sys.dont_write_bytecode:
        raise Wrong("what is imported late is written beside its source")
    return "nothing happened"


KIND = Kind(seeds, mutate, check)
