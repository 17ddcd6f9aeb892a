"""Comparison of a function with its definition in float64, output and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from rmeeto.ops import triton_support
from rmeeto.ops.add_norm import ADD_NORM
from rmeeto.ops.backend import Backend
from rmeeto.ops.conv1d import CONV1D
from rmeeto.ops.selective_scan import BIDIRECTIONAL
from rmeeto.ops.token_merge import MATCH, MERGE
from tests.helpers import TOLERANCE, assert_close_rms
from tests.ops.triton_cases.conftest import INTERPRETED

# opcheck without tracing the operator for autograd with dynamic shapes, which takes most of its time.
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")
FULL = (*QUICK, "test_aot_dispatch_dynamic")
HALF = 1e-3  # RMS ratio for fp16 storage; at 197 tokens bf16, whose bound is 5e-3, is seen to leave up to 3e-3


def use_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton operators first in every ladder and on any device, for the interpreter and for fake tensors."""
    monkeypatch.setattr(triton_support, "require_triton", lambda: None)
    for operator in (ADD_NORM, CONV1D, BIDIRECTIONAL, MATCH, MERGE):
        triton = next(backend for backend in operator.backends if backend.name == "triton")
        here = Backend("triton", ("cpu", "cuda"), triton.load)
        monkeypatch.setattr(operator, "backends", (here, *operator.backends))
        monkeypatch.setattr(operator, "_names", {})
        monkeypatch.setattr(operator, "_loaded", {})


def large(value: object) -> object:
    """A case that only a GPU is fast enough for."""
    return pytest.param(value, marks=pytest.mark.skipif(INTERPRETED, reason="too large for the interpreter"))


def slow(value: object) -> object:
    return pytest.param(value, marks=pytest.mark.slow)


def randn(*shape: int, seed: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def leaves(tensors: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Leaves that need gradients, strides kept."""
    return [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]


def compare(
    function: Callable,
    reference: Callable,
    tensors: dict[str, Tensor | None],
    tolerance: float | None = None,
) -> None:
    """Outputs (a tensor or several) and gradients against the reference in float64."""
    mine, exact = leaves(list(tensors.values())), leaves(list(tensors.values()), torch.float64)
    got, expected = function(*mine), reference(*exact)
    got, expected = ([t] if isinstance(t, Tensor) else list(t) for t in (got, expected))
    limits = [tolerance or _limit(t.dtype) for t in got]
    seeds = [randn(*t.shape, seed=90 + i, device=str(t.device), dtype=t.dtype) for i, t in enumerate(got)]
    torch.autograd.backward(got, seeds)
    torch.autograd.backward(expected, [seed.double() for seed in seeds])
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert_close_rms(a, b, f"output {i}", limits[i])
    for name, a, b in zip(tensors, mine, exact, strict=True):
        if a is not None:
            assert a.grad is not None and a.grad.dtype == a.dtype, name
            assert_close_rms(a.grad, b.grad, f"gradient of {name}", max(limits))


def _limit(dtype: torch.dtype) -> float:
    return HALF if dtype == torch.float16 else TOLERANCE[dtype]
