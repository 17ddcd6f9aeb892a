"""`python -m video_task` is `python -m video_task.main`; and the commands of an installation, which answer at once."""

import importlib
import sys

from rmeeto.cli.interrupt import answer_interrupts


def main() -> int:
    """`rmeeto-video`."""
    return _run("main")


def throughput() -> int:
    """`rmeeto-video-throughput`."""
    return _run("throughput")


def predict() -> int:
    """`rmeeto-video-predict`."""
    return _run("predict")


def visualize() -> int:
    """`rmeeto-video-visualize`."""
    return _run("visualize")


def export() -> int:
    """`rmeeto-video-export`."""
    return _run("export")


def _run(command: str) -> int:
    answer_interrupts()  # before torch is imported
    return importlib.import_module(f"video_task.{command}").main()


if __name__ == "__main__":
    sys.exit(main())
