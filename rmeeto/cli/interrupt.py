"""Ctrl-C while torch is imported, which takes seconds: before `run_command` there is nobody to answer it."""

from __future__ import annotations

import sys
from types import TracebackType


def answer_interrupts() -> None:
    """From here on an interrupt that nobody catches ends the process with a line and exit code 130."""
    sys.excepthook = _farewell


def _farewell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("interrupted before the first checkpoint", file=sys.stderr)
    sys.exit(130)
