"""`python -m image_task`, and `rmeeto-image` once installed: the same as `python -m image_task.main`."""

import sys

from rmeeto.cli.interrupt import answer_interrupts


def main() -> int:
    """Run the command line of this process."""
    answer_interrupts()  # before torch is imported
    from image_task.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
