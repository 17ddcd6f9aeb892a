"""How far a loop is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts a loop's rounds on stderr: tqdm on a terminal, plain lines otherwise.

    Args:
        title: what the loop does.
        total: rounds, or None where it is not known.
        start: rounds that an earlier process has done.
        shown: False on all processes but the main one.
    """

    def __init__(self, title: str, total: int | None, start: int = 0, shown: bool = True) -> None:
        self._title, self._total, self._count = title, total, start
        self._bar = None
        if shown and sys.stderr.isatty():
            self._bar = tqdm(desc=title, total=total, initial=start, leave=False, dynamic_ncols=True)
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES if shown else float("inf")

    def update(self, rounds: int = 1, note: str = "") -> None:
        """Some more rounds are done; `note` stands beside the count."""
        self._count += rounds
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(rounds)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            total = "" if self._total is None else f"/{self._total}"
            print(f"{self._title} {self._count}{total} {note}".rstrip(), file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
