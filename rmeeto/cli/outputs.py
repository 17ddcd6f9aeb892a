"""Whether the files that a command is to write can be written, asked before the work whose results they hold."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from rmeeto.errors import UserError

_ADVICE = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within your quota",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


def check_output(path: Path, flag: str, *, overwrite: bool = False) -> None:
    """Refuse a file that is there already, or that the disk would not take; nothing is made or changed.

    Args:
        path: of the file. Its folder need not be there yet.
        flag: of the command line that names it.
        overwrite: whether it may replace a file.

    Raises:
        UserError: it cannot be written, and what to do.
    """
    try:
        if os.path.isdir(path):
            raise UserError(f"{flag} {path} is a folder; expected a file's name.")
        if not overwrite and os.path.lexists(path):
            raise UserError(f"{flag} {path}: it is there already; give another name.")
        with contextlib.suppress(FileNotFoundError):
            os.lstat(f"{path}.tmp")  # where it is written first: a name may be too long, a "folder" be a file
        # Root may write by the permissions where the disk still refuses, so that a file is tried; it gets no name.
        folder = next((folder for folder in path.parents if folder.exists()), Path())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(unwritable(path, flag, error)) from None


def unwritable(path: Path, flag: str, error: OSError) -> str:
    """What to say of a file that the disk refused."""
    return f"{flag} {path} cannot be written: {error.strerror or error}; {advice(error)}."


def advice(error: OSError) -> str:
    """What to do about an error of the operating system."""
    return _ADVICE.get(error.errno or 0, "give a file in a folder that can be used")
