"""Where built libraries are kept: only what is this user's (or root's) and whole is used, as ssh treats its keys.

A library runs as part of the process. Its file's name ends in the digest of its bytes, which is compared before it is
loaded: a file that was cut or changed is removed and built again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# A build that was killed leaves its folder; by then any other build has ended, or was stopped.
STALE_S = 3600.0


def cache_folder() -> Path:
    """``$RMEETO_CACHE``, else ``rmeeto`` in the user's cache folder; absolute.

    Raises:
        OSError: neither is known, as there is no home folder.
    """
    if os.environ.get("RMEETO_CACHE"):
        return Path(os.environ["RMEETO_CACHE"]).absolute()
    if os.path.isabs(os.environ.get("XDG_CACHE_HOME", "")):
        return Path(os.environ["XDG_CACHE_HOME"]) / "rmeeto"
    home = os.path.expanduser("~") if os.environ.get("HOME", "~") else ""
    if not os.path.isabs(home):
        raise OSError("there is no home folder for the cache")
    return Path(home) / ".cache" / "rmeeto"


def find(stem: str) -> Path | None:
    """A whole library ``<stem>-<digest>.so`` of the cache; what bears such a name and is none is removed.

    Raises:
        OSError: the cache's folder cannot be trusted.
    """
    folder = cache_folder()
    if not folder.exists():
        return None
    _refuse_others(folder)
    _remove_leftovers(folder)
    for path in sorted(folder.glob(f"{stem}-*.so")):
        if _is_whole(path):
            return path
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return None


@contextlib.contextmanager
def building() -> Iterator[Path]:
    """A new folder in the cache for a build, locked and removed afterwards; the cache is made for this user alone.

    Raises:
        OSError: the cache cannot be made or written, or not be trusted.
    """
    cache = cache_folder()
    for folder in reversed([cache, *cache.parents]):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    _refuse_others(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-", ignore_cleanup_errors=True) as name:
        lock = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # some network file systems lock no folders
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            os.close(lock)


def keep(library: Path, stem: str) -> Path:
    """Move a library built in `building` to its place in the cache; processes that do so at once do not meet."""
    library.chmod(0o644)
    with library.open("rb") as file:
        kept = library.parents[1] / f"{stem}-{_digest(file)}.so"
    os.replace(library, kept)
    return kept


def _refuse_others(folder: Path) -> None:
    """Raise OSError where others could put a library into the folder, or a folder into its place."""
    _refuse_foreign(folder, folder.stat())
    for above in folder.resolve().parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise OSError(f"{above} is writable by everybody (mode {stat.S_IMODE(mode):o})")


def _refuse_foreign(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise OSError(f"{path} belongs to another user (number {status.st_uid})")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{path} is writable by others (mode {stat.S_IMODE(status.st_mode):o}; chmod go-w)")


def _is_whole(path: Path) -> bool:
    try:
        # A link may lead anywhere, and a pipe would wait for a writer.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(file)
        _refuse_foreign(path, status)
        if not stat.S_ISREG(status.st_mode):
            return False
        with open(file, "rb", closefd=False) as opened:
            return path.stem.endswith(f"-{_digest(opened)}")
    except OSError:
        return False
    finally:
        os.close(file)


def _digest(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _remove_leftovers(folder: Path) -> None:
    """Remove the folders of builds that were killed: old ones that nobody has locked."""
    for path in folder.glob("building-*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if status.st_uid != os.geteuid() or time.time() - status.st_mtime < STALE_S:
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(lock)
