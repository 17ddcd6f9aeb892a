"""The C library's heap, told to keep what is freed.

glibc hands large freed memory back to the system, and a model frees each layer's tensors before the next layer wants as
much again: page by page, zeroed, more or less with every run and every r, for it depends on what lies at the end of
the heap. PyTorch's CPU allocator keeps nothing itself.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h numbers them
KEPT, LARGEST = (1 << 31) - 1, 1 << 30  # bytes that lie free at the end of the heap, and of one tensor


@cache
def keep_freed() -> str:
    """Let the heap of this process keep freed memory for the tensors to come; in words, what came of it.

    Whoever sets the heap by the environment (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``,
    ``GLIBC_TUNABLES=glibc.malloc...``) has it so, and C libraries without ``mallopt`` (musl, those of macOS and
    Windows) are left alone.
    """
    own = [name for name in os.environ if name.startswith("MALLOC_") and name.endswith("_")]
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        own.append("GLIBC_TUNABLES")
    if own:
        return f"as {', '.join(sorted(own))} says"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return "the C library's own way: it has no mallopt"
    kept = mallopt(TRIM_THRESHOLD, KEPT) and mallopt(MMAP_THRESHOLD, LARGEST)
    return "keeps freed memory" if kept else "the C library's own way: mallopt refuses"
