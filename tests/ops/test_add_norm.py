"""Residual add and RMS norm: every backend against the definition in float64, forward and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from rmeeto.ops import add_rms_norm
from rmeeto.ops.add_norm import ADD_NORM
from rmeeto.ops.add_norm.naive import naive_add_rms_norm
from tests.helpers import TOLERANCE, assert_close_rms

BACKENDS = [name for name, state in ADD_NORM.explain("cpu") if state in ("chosen", "available")]

pytestmark = pytest.mark.usefixtures("nan_filled")


def inputs(batch, length, channels, residual=True, hidden=torch.float32, weight=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x, stream = torch.randn(2, batch, length, channels, generator=generator)
    scale = torch.randn(channels, generator=generator)
    return [x.to(hidden), stream if residual else None, scale.to(weight)]


def compare(backend, tensors, eps=1e-5):
    mine = [None if t is None else t.detach().requires_grad_() for t in tensors]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    got, expected = add_rms_norm(*mine, eps, backend=backend), naive_add_rms_norm(*exact, eps)
    assert got[0].dtype == tensors[2].dtype and got[1].dtype == torch.float32
    seeds = [torch.randn(y.shape, generator=torch.Generator().manual_seed(k)) for k, y in enumerate(expected)]
    torch.autograd.backward(got, [seed.to(y.dtype) for seed, y in zip(seeds, got, strict=True)])
    torch.autograd.backward(expected, [seed.to(y.dtype).double() for seed, y in zip(seeds, got, strict=True)])
    assert_close_rms(got[0], expected[0], "normed", 2 * TOLERANCE[got[0].dtype])
    assert_close_rms(got[1], expected[1], "sum")
    for name, a, b in zip(("hidden", "residual", "weight"), mine, exact, strict=True):
        if a is not None:
            coarsest = max(TOLERANCE[got[0].dtype], TOLERANCE[a.dtype])
            assert_close_rms(a.grad, b.grad, f"gradient of {name}", coarsest)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "length", "channels"), [(1, 1, 5), (3, 2, 192), (1, 63, 33), (3, 197, 20)])
@pytest.mark.parametrize("residual", [True, False])
def test_matches_the_definition(backend, batch, length, channels, residual):
    compare(backend, inputs(batch, length, channels, residual))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hidden", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_types_of_storage(backend, hidden, weight):
    compare(backend, inputs(2, 35, 40, hidden=hidden, weight=weight))


@pytest.mark.parametrize("backend", BACKENDS)
def test_eps_counts(backend):
    tensors = inputs(1, 3, 20)
    compare(backend, [1e-3 * tensors[0], 1e-3 * tensors[1], tensors[2]], eps=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_far_apart_in_memory(backend):
    hidden, residual, weight = inputs(2, 7, 20)
    spread = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (hidden, residual)]
    compare(backend, [*spread, weight])
    compare(backend, [hidden.mT.contiguous().mT, residual.mT.contiguous().mT, weight])


def test_gradients_of_the_definition():
    tensors = [t.double().requires_grad_() for t in inputs(2, 3, 4)]
    assert torch.autograd.gradcheck(naive_add_rms_norm, tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_stays_float64(backend):
    normed, total = add_rms_norm(*(t.double() for t in inputs(1, 3, 4)), backend=backend)
    assert normed.dtype == total.dtype == torch.float64


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name == "cpp"])
def test_registered_operator(backend):
    for residual in (True, False):
        tensors = [None if t is None else t.requires_grad_() for t in inputs(2, 9, 6, residual)]
        opcheck(torch.ops.rmeeto.add_rms_norm.default, (*tensors, 1e-5))
    tensors = [t.requires_grad_() for t in inputs(2, 9, 6)]

    def loss(*t):
        normed, total = add_rms_norm(*t, backend=backend)
        return (normed * total).sum()

    expected = torch.autograd.grad(loss(*tensors), tensors)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True):
        torch.testing.assert_close(a, b)
