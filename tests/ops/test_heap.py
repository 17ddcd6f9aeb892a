"""The heap keeps what is freed: a layer's tensors take no new pages, and who sets the heap otherwise has it so."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from rmeeto.ops import heap

# A pass of four layers like one before: the pages that come to a process of its own, whose heap has no gaps and starts
# from glibc's thresholds, which what was freed so far may have moved.
PASSES = """
import ctypes, resource, torch
from rmeeto.ops import build, heap

for threshold in (heap.TRIM_THRESHOLD, heap.MMAP_THRESHOLD):
    ctypes.CDLL(None).mallopt(threshold, 128 << 10)

def pages():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            held = [torch.ones(1 << 20) for _ in range(8)]
            del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages())
build.library()
print(pages())
"""


def pages() -> list[int]:
    """Before the kernels are there, and with them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", PASSES], env=kept, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def with_glibc() -> bool:
    return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not with_glibc(), reason="glibc alone has mallopt")
def test_memory_stays_with_the_process_once_the_kernels_are_there():
    before, after = pages()
    assert before > 1000 and after < before / 50


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
