"""`python -m image_task` is `python -m image_task.main`; and the commands of an installation, which answer at once."""

import importlib
import sys

from rmeeto.cli.interrupt import answer_interrupts


def main() -> int:
    """`rmeeto-image`."""
    return _run("main")


def finetune() -> int:
    """`rmeeto-finetune`."""
    return _run("finetune")


def shards() -> int:
    """`rmeeto-shards`."""
    return _run("shards")


def throughput() -> int:
    """`rmeeto-image-throughput`."""
    return _run("throughput")


def predict() -> int:
    """`rmeeto-predict`."""
    return _run("predict")


def visualize() -> int:
    """`rmeeto-visualize`."""
    return _run("visualize")


def export() -> int:
    """`rmeeto-export`."""
    return _run("export")


def _run(command: str) -> int:
    answer_interrupts()  # before torch is imported
    return importlib.import_module(f"image_task.{command}").main()


if __name__ == "__main__":
    sys.exit(main())
