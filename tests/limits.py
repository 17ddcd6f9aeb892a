"""Hostile files are opened in a process of their own, with little memory and time."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.warm import MEGABYTES, PYTHON

TORCH = 2000  # megabytes of address space that a process with torch has before it does anything
ROOT = Path(__file__).resolve().parents[1]


def run_limited(code: str, *arguments: object, megabytes: int = 4000, seconds: float = 300) -> str:
    """What a Python program prints, run from the project's folder; it must not fail.

    Args:
        code: of the program.
        arguments: its sys.argv[1:].
        megabytes: of address space, of which torch takes half.
        seconds: after which it is killed.
    """

    command = [PYTHON, "-c", code, *map(str, arguments)]
    environment = os.environ | {MEGABYTES: str(megabytes - TORCH)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=seconds, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
