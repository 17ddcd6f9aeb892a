"""How far a loop is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import re
import sys
import time

from tqdm import tqdm

WIDTH = 80  # columns
LINE_EVERY = 30.0  # seconds between two lines
BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"


def wrapped(text: str, indent: int = 8) -> list[str]:
    """A list in words as lines of 80 columns, broken behind commas only: names and paths stay whole."""
    lines = [""]
    for part in re.findall(r".*?, |.+$", text):
        if lines[-1].strip() and len((lines[-1] + part).rstrip()) > WIDTH:
            lines.append(" " * indent)
        lines[-1] += part
    return [line.rstrip() for line in lines]


def clock(seconds: float) -> str:
    """A time as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Counts a loop's rounds on stderr: tqdm on a terminal, plain lines otherwise.

    Args:
        title: what the loop does.
        total: rounds, or None where it is not known.
        start: rounds that an earlier process has done.
        shown: False on all processes but the main one.
        line_every: seconds between two lines where there is no terminal.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        start: int = 0,
        shown: bool = True,
        *,
        line_every: float,
    ) -> None:
        self._title, self._total, self._count, self._every = title, total, start, line_every
        self._bar = None
        if shown and sys.stderr.isatty():
            form = None if total is None else BAR
            self._bar = tqdm(desc=title, total=total, initial=start, leave=False, dynamic_ncols=True, bar_format=form)
        self._next_line = time.monotonic() + line_every if shown else float("inf")

    def update(self, rounds: int = 1, note: str = "", more: str = "") -> None:
        """Some more rounds are done; `note` stands beside the count, and `more` behind it where there is the room."""
        self._count += rounds
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(rounds)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self._every
            total = "" if self._total is None else f"/{self._total}"
            print(f"{self._title} {self._count}{total} {note}{more}".rstrip(), file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
