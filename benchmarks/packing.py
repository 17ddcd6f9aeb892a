"""Results as one file, for machines that give few files back. Needs nothing but Python."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

RESULTS = "*.json", "*.csv", "*.log", "upstream/build.*"


def pack(folder: Path, archive: Path, patterns: Iterable[str] = RESULTS) -> int:
    """Pack a folder's files, each under its name there; the archive is replaced in one step.

    One process packs at a time: what another read earlier and wrote later would lack the newest rows.

    Returns:
        Its bytes.
    """
    temporary = archive.with_name(f"{archive.name}.{os.getpid()}.tmp")
    place = os.open(archive.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems lock no folders
            fcntl.flock(place, fcntl.LOCK_EX)  # of the folder, so that no file is left; a killed process gives it back
        with tarfile.open(temporary, "w:gz", compresslevel=1) as packed:
            for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
                packed.add(file, file.relative_to(folder))
        size = temporary.stat().st_size
        os.replace(temporary, archive)
    finally:
        os.close(place)
    return size
