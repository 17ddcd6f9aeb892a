"""Matching and merging: every backend makes the plan of `rmeeto.merge.match` and merges as it does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from rmeeto.merge import Tokens, match, merge_wavg
from rmeeto.ops import match_tokens, merge_tokens
from rmeeto.ops.token_merge import MATCH
from rmeeto.ops.token_merge.naive import naive_merge_tokens
from tests.helpers import TOLERANCE, assert_close_rms

BACKENDS = [name for name, state in MATCH.explain("cpu") if state in ("chosen", "available")]
SIZES = [
    (1, 3, 7, 1, 1),
    (2, 10, 5, 4, 3),
    (1, 9, 5, 4, 8),
    (3, 65, 20, 12, 0),
    (2, 197, 33, 11, 98),
    (1, 500, 24, 88, 0),
]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matched(metric, r, class_index, exact=False, backend="auto"):
    position = "exact" if exact else "proportional"
    return match_tokens(metric, r, Tokens(metric.shape[1], class_index, class_position=position), backend=backend)


def assert_same_plan(got, plan):
    for name in ("keep", "source", "destination"):
        assert getattr(got, name).dtype == torch.long
        assert torch.equal(getattr(got, name), getattr(plan, name)), name
    assert type(got.class_index) is type(plan.class_index)
    assert torch.equal(torch.as_tensor(got.class_index), torch.as_tensor(plan.class_index))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("batch", "tokens", "channels", "r", "class_index"), SIZES)
def test_plan_is_that_of_match(backend, exact, batch, tokens, channels, r, class_index):
    metric = randn(batch, tokens, channels)
    plan = match(metric, r, class_index, class_position="exact" if exact else "proportional")
    assert_same_plan(matched(metric, r, class_index, exact, backend=backend), plan)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exact", [False, True])
def test_class_index_of_each_sample(backend, exact):
    metric, index = randn(3, 21, 8), torch.tensor([0, 7, 20])
    plan = match(metric, 6, index, class_position="exact" if exact else "proportional")
    assert_same_plan(matched(metric, 6, index, exact, backend=backend), plan)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(3, 40), channels=st.integers(8, 40), data=st.data())
def test_plan_of_any_size(backend, tokens, channels, data):
    r = data.draw(st.integers(1, (tokens - 1) // 2))
    class_index = data.draw(st.integers(0, tokens - 1))
    metric = randn(2, tokens, channels, seed=data.draw(st.integers(0, 99)))
    plan = match(metric, r, class_index)
    assert_same_plan(matched(metric, r, class_index, backend=backend), plan)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lower_position(backend):
    metric = torch.ones(2, 12, 4)
    metric[:, 6:] *= -1
    assert_same_plan(matched(metric, 4, 5, backend=backend), match(metric, 4, 5))
    assert_same_plan(matched(torch.zeros(1, 9, 4), 3, 0, backend=backend), match(torch.zeros(1, 9, 4), 3, 0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_types_and_strides_of_the_metric(backend):
    metric = randn(2, 21, 16)
    for given_ in (metric.bfloat16(), metric.mT.contiguous().mT, randn(2, 21, 32)[..., 16:], metric.double()):
        assert_same_plan(matched(given_, 5, 10, backend=backend), match(given_, 5, 10))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_metric_that_is_not_finite_still_gives_a_plan(backend):
    metric = randn(2, 21, 16)
    metric[0] = float("nan")
    metric[1, 3] = float("inf")
    plan = matched(metric, 5, 10, backend=backend)
    assert torch.equal(torch.cat([plan.keep, plan.source], dim=1).sort(dim=1).values, torch.arange(21).expand(2, -1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("r", "class_index", "message"),
    [(0, 1, "r=0"), (5, 1, "r=5; expected 1 to 4"), (2, 9, "class_index=9"), (2, -1, "-1")],
)
def test_out_of_range(backend, r, class_index, message):
    with pytest.raises(ValueError, match=message):
        matched(randn(1, 9, 4), r, class_index, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("class_index", "message"),
    [
        ([3], r"shape \(1,\); expected \(4,\)"),
        ([[3], [3], [3], [3]], r"shape \(4, 1\); expected \(4,\)"),
        ([0, 3, 100000, 3], "from 0 to 100000; expected 0 to 8"),
        ([0, -1, 3, 3], "from -1 to 3; expected 0 to 8"),
    ],
)
def test_a_class_index_of_each_sample_that_is_none(backend, dtype, class_index, message):
    with pytest.raises(ValueError, match=message):
        matched(randn(4, 9, 4).to(dtype), 2, torch.tensor(class_index), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_graph_takes_a_class_index_of_each_sample(backend):
    metric, index = randn(3, 21, 8), torch.tensor([0, 7, 20])
    compiled = torch.compile(matched, fullgraph=True, backend="eager")
    expected = match(metric, 6, index, class_position="exact")
    assert_same_plan(compiled(metric, 6, index, True, backend), expected)


def inputs(batch=2, tokens=37, channels=20, residual=True, size=True, hidden=torch.float32):
    sizes = torch.randint(1, 6, (batch, tokens, 1), generator=torch.Generator().manual_seed(2)).float()
    return (
        randn(batch, tokens, channels).to(hidden),
        randn(batch, tokens, channels, seed=1) if residual else None,
        sizes if size else None,
    )


def plan_of(hidden, r=9, class_index=18):
    return matched(hidden, r, class_index, backend="torch")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("size", [True, False])
def test_merge_is_that_of_merge_wavg(backend, residual, size, nan_filled):
    hidden, stream, sizes = inputs(residual=residual, size=size)
    plan = match(hidden, 9, 18)
    expected, expected_size = merge_wavg(plan, hidden if stream is None else hidden + stream, sizes)
    got, new_size = merge_tokens(hidden, stream, sizes, plan_of(hidden), backend=backend)
    assert torch.equal(new_size, expected_size)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("size", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [37, 130])
def test_merge_and_its_gradients_match_the_definition(backend, residual, size, dtype, tokens, nan_filled):
    hidden, stream, sizes = inputs(tokens=tokens, residual=residual, size=size, hidden=dtype)
    plan = plan_of(hidden)
    leaves = [None if t is None else t.requires_grad_() for t in (hidden, stream)]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in leaves]
    got, new_size = merge_tokens(*leaves, sizes, plan, backend=backend)
    expected, expected_size = naive_merge_tokens(*exact, None if sizes is None else sizes.double(), plan)
    seed = randn(*expected.shape, seed=3).to(got.dtype)
    got.backward(seed)
    expected.backward(seed.double())
    assert not new_size.requires_grad
    assert torch.equal(new_size.double(), expected_size)
    assert_close_rms(got, expected, "merged", TOLERANCE[torch.bfloat16] if got.dtype != torch.float32 else None)
    for name, a, b in zip(("hidden", "residual"), leaves, exact, strict=True):
        if a is not None:
            assert_close_rms(a.grad, b.grad, f"gradient of {name}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_merge_of_rows_far_apart_in_memory(backend):
    hidden, stream, sizes = inputs()
    plan = plan_of(hidden)
    expected = merge_tokens(hidden, stream, sizes, plan, backend=backend)[0]
    spread = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (hidden, stream)]
    assert torch.equal(merge_tokens(*spread, sizes, plan, backend=backend)[0], expected)
    assert torch.equal(merge_tokens(hidden.mT.contiguous().mT, stream, sizes, plan, backend=backend)[0], expected)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name == "cpp"])
def test_registered_operators(backend):
    hidden, stream, sizes = inputs()
    opcheck(torch.ops.rmeeto.match_tokens.default, (hidden, 9, None, 18, False))
    opcheck(torch.ops.rmeeto.match_tokens.default, (hidden, 9, torch.tensor([3, 4]), 0, True))
    leaves = [hidden.requires_grad_(), stream.requires_grad_()]
    plan = plan_of(hidden)
    positions = plan.keep, plan.source, plan.destination
    opcheck(torch.ops.rmeeto.merge_tokens.default, (*leaves, sizes, *positions))
    opcheck(torch.ops.rmeeto.merge_tokens.default, (hidden, None, None, *positions))

    def loss(hidden, stream):
        plan = matched(hidden, 9, 18, backend=backend)
        return merge_tokens(hidden, stream, sizes, plan, backend=backend)[0].square().sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(a, b)
