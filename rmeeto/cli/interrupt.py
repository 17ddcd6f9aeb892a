"""The seconds in which torch is imported: a sign of life, and an answer to Ctrl-C before `run_command` is there."""

from __future__ import annotations

import os
import sys
from types import TracebackType


def answer_interrupts() -> None:
    """From here on an interrupt that nobody catches ends the process with a line and exit code 130.

    Who watches a terminal is told that the command has begun.
    """
    sys.excepthook = _farewell
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print("starting: importing torch takes some seconds", file=sys.stderr, flush=True)


def _farewell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("interrupted", file=sys.stderr)
    sys.exit(130)
