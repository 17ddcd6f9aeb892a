"""Hostile files are opened in a process of their own, with little memory and time."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_limited(code: str, *arguments: object, megabytes: int = 4000, seconds: float = 60) -> str:
    """What a Python program prints, run from the project's folder; it must not fail.

    Args:
        code: of the program.
        arguments: its sys.argv[1:].
        megabytes: of address space, of which torch takes half.
        seconds: after which it is killed.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, preexec_fn=limit, timeout=seconds, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
