"""What a training set consists of, in so few words that a checkpoint can hold them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_THREADS = 16  # which wait for the file system together
_CHUNK = 4096  # files that one of them asks for in a row


def by_class(classes: Sequence[str], targets: Iterable[int], samples: Iterable[bytes]) -> dict[str, list[int | str]]:
    """For each class the number of its samples, and a digest of them in their order.

    Args:
        classes: their names.
        targets: the class of each sample.
        samples: what tells it from another, such as its name and size.
    """
    found = [hashlib.sha256() for _ in classes]
    counts = [0] * len(classes)
    for target, sample in zip(targets, samples, strict=True):
        counts[target] += 1
        found[target].update(len(sample).to_bytes(8, "little") + sample)
    return {name: [count, digest.hexdigest()[:16]] for name, count, digest in zip(classes, counts, found)}


def of_files(paths: np.ndarray, folder: str) -> list[bytes]:
    """Name and size of files.

    Args:
        paths: (n,) bytes.
        folder: that a name begins in, so that data may move.
    """
    start = os.fsencode(folder)
    chunks = [paths[first : first + _CHUNK].tolist() for first in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = [size for chunk in threads.map(lambda some: list(map(_size, some)), chunks) for size in chunk]
    return [b"%s %d" % (path.removeprefix(start), size) for path, size in zip(paths.tolist(), sizes)]


def _size(path: bytes) -> int:
    try:
        found = os.stat(path)
    except OSError:
        return -1  # counted as unreadable when its turn comes
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
