"""A folder that one process at a time writes to."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Any

from rmeeto.errors import UserError


def lock(file: IO[Any], folder: Path) -> None:
    """Keep other processes out of a folder for as long as a file in it is open for writing.

    The lock is the process's, not that of those that it forks, and ends with whatever else of this file the process
    opens and closes.

    Raises:
        UserError: another process has it.
        OSError: the file cannot be locked.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process is writing to {folder}; wait for it or stop it.") from None
