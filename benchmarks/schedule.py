"""The latency-aware schedule beside the constant one: `python benchmarks/schedule.py`, as `run.py --suite schedule`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not this folder
    from benchmarks.cli import main

    sys.exit(main(["--suite", "schedule", *sys.argv[1:]]))
