"""Both directions' convolution: every backend against the definition, forward and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from rmeeto.ops import bidirectional_conv1d
from rmeeto.ops.conv1d import CONV1D
from rmeeto.ops.conv1d.naive import naive_bidirectional_conv1d, naive_causal_conv1d
from tests.helpers import TOLERANCE, assert_close_rms

BACKENDS = [name for name, state in CONV1D.explain("cpu") if state in ("chosen", "available") and name != "naive"]

pytestmark = pytest.mark.usefixtures("nan_filled")


def inputs(batch, length, channels, kernel=4, dtype=torch.float32):
    """x as the first half of in_proj's output, then weight, bias, weight_b, bias_b."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    x = randn(batch, length, 2 * channels).to(dtype)[..., :channels]
    return [x, randn(channels, 1, kernel), randn(channels), randn(channels, 1, kernel), randn(channels)]


def compare(backend, tensors):
    mine = [t.detach().requires_grad_() for t in tensors]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    got = bidirectional_conv1d(*mine, backend=backend)
    expected = naive_bidirectional_conv1d(*exact)
    seeds = [torch.randn(y.shape, generator=torch.Generator().manual_seed(k)) for k, y in enumerate(expected)]
    torch.autograd.backward(got, [seed.to(y.dtype) for seed, y in zip(seeds, got, strict=True)])
    torch.autograd.backward(expected, [seed.to(got[0].dtype).double() for seed in seeds])
    tolerance = TOLERANCE[tensors[0].dtype]
    for name, a, b in zip(("forward", "backward"), got, expected, strict=True):
        assert a.dtype == tensors[0].dtype
        assert_close_rms(a, b, name, tolerance)
    for name, a, b in zip(("x", "weight", "bias", "weight_b", "bias_b"), mine, exact, strict=True):
        assert_close_rms(a.grad, b.grad, f"gradient of {name}", tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 63, 197, 500])
def test_matches_the_definition(backend, batch, length):
    compare(backend, inputs(batch, length, 20))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
def test_any_kernel(backend, kernel):
    compare(backend, inputs(2, 9, 33, kernel))
    compare(backend, inputs(2, 2, 5, kernel))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name == "cpp"])
def test_bf16_storage_matches_the_definition(backend):
    compare(backend, inputs(2, 37, 49, dtype=torch.bfloat16))


@pytest.mark.parametrize("backend", [*BACKENDS, "naive"])
def test_each_direction_sees_its_own_side_only(backend):
    x, *parameters = inputs(1, 9, 4)
    changed = x.clone()
    changed[:, 5] += 1
    forward, backward = bidirectional_conv1d(x, *parameters, backend=backend)
    forward2, backward2 = bidirectional_conv1d(changed, *parameters, backend=backend)
    assert torch.equal(forward[:, :5], forward2[:, :5]) and not torch.equal(forward[:, 5:], forward2[:, 5:])
    assert torch.equal(backward[:, 6:], backward2[:, 6:]) and not torch.equal(backward[:, :6], backward2[:, :6])


def test_definition_reversed_is_flipping_by_hand():
    x, weight, bias, *_ = inputs(2, 9, 4)
    flipped = naive_causal_conv1d(x.flip(1), weight, bias).flip(1)
    assert torch.equal(naive_causal_conv1d(x, weight, bias, reverse=True), flipped)


def test_gradients_of_the_definition():
    tensors = [t.double().requires_grad_() for t in inputs(2, 5, 3)]
    assert torch.autograd.gradcheck(naive_bidirectional_conv1d, tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_one_direction_used(backend):
    tensors = [t.detach().requires_grad_() for t in inputs(1, 5, 3)]
    bidirectional_conv1d(*tensors, backend=backend)[0].sum().backward()
    unused = tensors[3].grad
    assert unused is None or not unused.any()


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name == "cpp"])
def test_registered_operator(backend):
    tensors = [t.detach().requires_grad_() for t in inputs(2, 9, 6)]
    opcheck(torch.ops.rmeeto.conv1d.default, tuple(tensors))

    def loss(*t):
        forward, reverse = bidirectional_conv1d(*t, backend=backend)
        return (forward * reverse).sum()

    expected = torch.autograd.grad(loss(*tensors), tensors)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True):
        torch.testing.assert_close(a, b)
