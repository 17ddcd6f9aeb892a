"""Validate several commands in one process, for importing torch takes longer than all of them.

`python -m rmeeto.cli.dry_runs -- LINE -m MODULE ARGUMENTS... -- LINE -m MODULE ...` prints each LINE and calls its
module's `main`, until one fails; exp_sh/launch.sh hands over a recipe's commands so.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the commands, each a dry run or a check.

    Returns:
        The exit code: 0, or that of the first command that failed.
    """
    for line, _, module, *arguments in _commands(sys.argv[1:] if argv is None else argv):
        sys.stdout.buffer.write(os.fsencode(line) + b"\n")
        sys.stdout.flush()
        with contextlib.ExitStack() as stack:
            if "--dry_run" in arguments:  # its settings are not asked for
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            code = importlib.import_module(module).main(arguments)
        if code:
            return code
    return 0


def _commands(words: Sequence[str]) -> Iterator[list[str]]:
    starts = [index for index, word in enumerate(words) if word == "--"]
    for start, end in zip(starts, [*starts[1:], len(words)]):
        yield list(words[start + 1 : end])


if __name__ == "__main__":
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()  # before torch is imported
    sys.exit(main())
