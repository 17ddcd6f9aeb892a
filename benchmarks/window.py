"""Local against exact matching: cost, time and agreement: `python benchmarks/window.py`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not this folder
    from benchmarks.windows import main

    sys.exit(main())
