"""An input, and what may come of it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

ACCEPT = "accept"  # an honest file: refusing it is a finding
SAME = "same"  # damage that can be noticed: refused, or what the seed gives
ANY = "any"  # honestly of other content: refused, or a result that holds together


class Refused(Exception):
    """The input was refused in a line or two, as it should be."""


class Wrong(Exception):
    """The input was accepted, and what came of it is not what is in it."""


@dataclass(frozen=True)
class Case:
    """One input: what is written to the disk, the seed it was made of, what is right (ACCEPT, SAME or ANY), and more
    that its kind wants to know."""

    data: bytes
    seed: str = ""
    right: str = ANY
    more: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        about = {"seed": self.seed, "right": self.right, "more": self.more}
        return json.dumps(about).encode() + b"\n" + self.data

    @classmethod
    def from_bytes(cls, raw: bytes) -> Case:
        about, _, data = raw.partition(b"\n")
        return cls(data, **json.loads(about))

    @property
    def name(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Args:
        seeds: honest inputs by name; made once.
        mutate: makes a case of the seeds, from the generator alone.
        check: tries a case in the current folder, which is empty: returns what has come of it, raises `Refused`,
            `Wrong`, or (a finding) anything else.
        weight: its share of the inputs.
        batch: inputs that one child process takes, one after the other.
        programs: names of programs that it may start.
        may_read: it may open files outside its folder, which the user's lists, settings or command line name.
        lines: that a refusal may have.
    """

    seeds: Callable[[], Mapping[str, bytes]]
    mutate: Callable[[random.Random, Mapping[str, bytes]], Case]
    check: Callable[[Case, Mapping[str, bytes]], str]
    weight: int = 10
    batch: int = 25
    programs: tuple[str, ...] = ()
    may_read: bool = False
    lines: int = 3
