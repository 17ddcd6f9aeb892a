"""What the small commands share: their argument parser, which shows what it cannot read, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rmeeto.cli.outputs import advice
from rmeeto.errors import UserError, shown


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` whose complaints are `shown`: exit code 2 after the usage and a line."""

    def error(self, message: str) -> NoReturn:
        super().error(shown(message))


class OneLineParser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` whose complaints are a `UserError`, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags.")


def home(text: str) -> str:
    """A path in which ``~`` is the user's folder, which a shell leaves where it stands behind ``--flag=``."""
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


def read_path(text: str) -> Path:
    """A path of a command line."""
    return Path(home(text))


def _said(error: OSError) -> str:
    """An error of the operating system with its file, where it tells one, and what to do."""
    if error.errno is None:
        return str(error)
    what = "the output, or a file," if error.filename is None else error.filename
    return f"{what} cannot be used: {error.strerror}; {advice(error)}."


def _drop_output() -> None:
    """Leave out what stdout does not take, which the exit would flush once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_small(work: Callable[[], Any], in_flags: Callable[[str], str] = str, interrupted: str = "interrupted") -> int:
    """Do a command's work; what a user can mend is one or two lines on stderr.

    Args:
        work: the command.
        in_flags: puts a message of the library into flags.
        interrupted: what Ctrl-C is answered with.

    Returns:
        The exit code: 0, 1 when nobody reads the output any more, 2 for a user error or a file that the disk does not
        take, 130 after Ctrl-C.
    """
    try:
        work()
        return 0
    except UserError as error:
        print(f"error: {in_flags(str(error))}", file=sys.stderr)
    except BrokenPipeError:  # who read the output, such as head, has left; the exit flushes it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {shown(_said(error))}", file=sys.stderr)
        _drop_output()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 2
