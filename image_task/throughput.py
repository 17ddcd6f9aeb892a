"""How fast a model is, dense and merged, interleaved in one process: `python -m image_task.throughput --help`."""

from __future__ import annotations

import sys

from image_task.models import ALIASES, MODELS
from rmeeto.cli.speed_plot import draw
from rmeeto.cli.throughput import Throughput

__all__ = ["draw", "main", "parse", "resolve"]

COMMAND = Throughput(
    prog="image_task.throughput",
    description=__doc__,
    models=MODELS,
    aliases=ALIASES,
    short=lambda name: (f"{name}_patch16_224", f"rmeeto_{name}", f"rmeeto_{name}_patch16_224"),
    model="vim_tiny",
    r=(0, 5, 11),
    batch_size=(1, 32),
    samples="images",
)
main, parse, resolve = COMMAND.main, COMMAND.parse, COMMAND.resolve


if __name__ == "__main__":
    sys.exit(main())
