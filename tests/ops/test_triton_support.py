"""Whether the Triton kernels can run here: the reason is named, and the ladder goes on to the next backend."""

from __future__ import annotations

import pytest
import torch

from rmeeto.ops import triton_support
from rmeeto.ops.backend import BackendUnavailable
from rmeeto.ops.selective_scan import BIDIRECTIONAL


@pytest.fixture
def machine(monkeypatch):
    """An NVIDIA GPU with everything that the kernels need; a test takes one thing away."""
    monkeypatch.setattr(triton_support, "version", lambda package: "3.6.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    triton_support.require_triton.cache_clear()
    yield monkeypatch
    triton_support.require_triton.cache_clear()


def test_a_gpu_with_triton_is_enough(machine):
    triton_support.require_triton()


def not_installed(package):
    raise triton_support.PackageNotFoundError


@pytest.mark.parametrize(
    ("place", "name", "value", "reason"),
    [
        (triton_support, "version", not_installed, "triton is not installed"),
        (triton_support, "version", lambda package: "3.5.1", "needs Triton 3.6 or newer, found 3.5.1"),
        (torch.version, "cuda", None, "torch is built without CUDA"),
        (torch.cuda, "is_available", lambda: False, "no CUDA device"),
        (torch.cuda, "get_device_capability", lambda: (7, 5), "8.0 or newer, this GPU has 7.5"),
    ],
)
def test_what_is_missing_is_named(machine, place, name, value, reason):
    machine.setattr(place, name, value)
    with pytest.raises(BackendUnavailable, match=reason):
        triton_support.require_triton()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_ladder_goes_on_to_pytorch(monkeypatch):
    monkeypatch.setattr(BIDIRECTIONAL, "_names", {})  # other tests pretend to have a GPU, and a choice is kept
    triton_support.require_triton.cache_clear()
    assert BIDIRECTIONAL.chosen("cuda") == "torch"
    states = dict(BIDIRECTIONAL.explain("cuda"))
    assert states["torch"] == "chosen"
    assert "CUDA" in states["triton"]
    assert "does not import" in states["upstream"]


def test_powers_of_two():
    assert [triton_support.power_of_two(n) for n in (1, 2, 3, 16, 17)] == [1, 2, 4, 16, 32]
    assert triton_support.power_of_two(3, 16) == 16
