"""Checkpoints that a crash cannot spoil, and the state that makes a resumed run equal an uninterrupted one."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmeeto.errors import UserError
from rmeeto.json_file import open_new
from rmeeto.reader import DIGEST, Unreadable, digest, read


class DiskError(UserError):
    """The disk refuses to take a checkpoint."""


def save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint so that `path` holds the old one or the new one, whole, whatever happens meanwhile.

    Args:
        path: where to; the file is written beside it and renamed.
        state: tensors, numbers, strings, None, and dicts and lists of them (`load` accepts nothing else). A digest of
            it is written with it.
        previous: where the file that was at `path` is kept.

    Raises:
        DiskError: the disk refuses (full, read-only); the old file is untouched.
    """
    temporary, disk = path.with_name(path.name + ".tmp"), _Watched()
    try:
        with open_new(temporary) as disk.file:
            torch.save({**state, DIGEST: digest(state)}, disk)
            disk.file.flush()
            os.fsync(disk.file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = disk.error if isinstance(error, RuntimeError) else error  # torch turns the disk's into its own
        if reason is None:
            raise
        raise DiskError(
            f"{path} cannot be written ({reason}); what was there before is intact. Free the disk and resume."
        ) from None


class _Watched:
    """A file to write to that remembers what the disk has refused."""

    file: Any = None
    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def load(path: Path, *entries: str) -> dict[str, Any]:
    """Read a checkpoint of `save` onto the CPU; nothing that the file brings is executed, its digest is verified.

    Files from before there were digests have none; of them the checksums of the archive are all that is verified.

    Args:
        path: of the file.
        entries: that it needs to have.

    Raises:
        UserError: the file is missing, truncated, damaged or not such a checkpoint.
    """
    try:
        state = read(path)
    except (Unreadable, OSError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({error}); start anew with another run.name.") from None
    missing = [name for name in entries if not isinstance(state, dict) or name not in state]
    if missing:
        raise UserError(
            f"{path} is another file than this run's: it has no {', '.join(missing)}. Put the right one there, or "
            "start anew with another run.name."
        )
    return state


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The global random generators of this process as plain values: Python's, NumPy's and torch's."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    kind, keys, position, has_gauss, cached = legacy
    state = {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `rng_state` returned (the GPU's part only if there is one on both sides)."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
