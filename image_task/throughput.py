"""How fast a model is, dense and merged, interleaved in one process: `python -m image_task.throughput --help`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as `python image_task/throughput.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

from image_task.config import Config
from image_task.models import ALIASES, MODELS
from rmeeto.cli.speed_plot import draw
from rmeeto.cli.throughput import Throughput

__all__ = ["draw", "main", "parse", "resolve"]

COMMAND = Throughput(
    prog="python -m image_task.throughput",
    description=(__doc__ or "").partition(":")[0] + ".",
    config=Config,
    models=MODELS,
    aliases=ALIASES,
    prefixes=("rmeeto_",),
    model="vim_tiny",
    r=(0, 5, 11),
    batch_size=(1, 32),
    samples="images",
    timms=True,
)
main, parse, resolve = COMMAND.main, COMMAND.parse, COMMAND.resolve


if __name__ == "__main__":
    sys.exit(main())
