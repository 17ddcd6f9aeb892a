"""The heap keeps what is freed: a layer's tensors take no new pages, and who sets the heap otherwise has it so."""

from __future__ import annotations

import ctypes
import resource

import pytest
import torch

from rmeeto.ops import build, heap
from tests.forked import run

LAYER = 4 << 20  # bytes, as of the widest tensor of Vim-Ti at batch 8


def pages_of_a_pass() -> int:
    """Pages that come to the process in a pass of four layers like one before."""
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            held = [torch.ones(LAYER // 4) for _ in range(8)]
            del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def with_glibc() -> bool:
    return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not with_glibc(), reason="glibc alone has mallopt")
def test_memory_stays_with_the_process_once_the_kernels_are_there(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)

    def kept() -> tuple[int, int]:
        heap.keep_freed.cache_clear()
        mallopt = ctypes.CDLL(None).mallopt
        assert mallopt(heap.MMAP_THRESHOLD, 128 << 10) and mallopt(heap.TRIM_THRESHOLD, 128 << 10)
        before = pages_of_a_pass()
        build.library.cache_clear()
        build.library()
        return before, pages_of_a_pass()

    [(before, after)] = run(1, kept)
    assert before > 4 * 8 * LAYER / 2**16 and after < before / 50, (before, after)


def test_who_sets_the_heap_has_it_so(monkeypatch):
    def asked(*_):
        raise AssertionError("mallopt was called")

    monkeypatch.setattr(ctypes, "CDLL", asked)
    for name, value in (("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert heap.keep_freed.__wrapped__() == f"as {name} says"


@pytest.mark.parametrize(
    "library, words", [(object(), "it has no mallopt"), (type("", (), {"mallopt": lambda *_: 0}), "refuses")]
)
def test_other_c_libraries_are_left_alone(monkeypatch, library, words):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: library)
    assert heap.keep_freed.__wrapped__().endswith(words)
