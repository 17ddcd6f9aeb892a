"""The kernels that match and merge tokens: the plan exactly, the average closely."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from rmeeto.merge import MergePlan, Tokens
from rmeeto.ops.token_merge import triton_match, triton_merge
from rmeeto.ops.token_merge.naive import naive_match_tokens, naive_merge_tokens
from tests.helpers import assert_close_rms
from tests.ops.triton_cases.common import FULL, QUICK, compare, large, randn, slow

SIZES = [  # B, L, C, r, class index
    (2, 33, 20, 5, 16),
    (2, 34, 20, 16, 0),
    (1, 3, 20, 1, 1),
    (3, 41, 70, 20, 40),
    (2, 33, 20, 16, torch.tensor([3, 30])),
    *(large((8, length, 256, r, length // 2)) for length in (76, 186, 197) for r in (5, 11)),
    large((2, 1569, 64, 88, 0)),
    large((2, 1569, 256, 784, 784)),
]
EXACT = 70  # tokens from which on two of the random scores may lie within a rounding error of each other


def same(got: MergePlan, expected: MergePlan) -> bool:
    pairs = [(getattr(got, f.name), getattr(expected, f.name)) for f in dataclasses.fields(MergePlan)]
    return all(torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b for a, b in pairs)


def matched(match_tokens, metric, r, index, exact=False):
    position = "exact" if exact else "proportional"
    return match_tokens(metric, r, Tokens(metric.shape[1], index, class_position=position))


def on(device, index):
    return index.to(device) if isinstance(index, Tensor) else index


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_plan_is_that_of_the_definition(sizes, dtype, exact, device):
    b, length, c, r, index = sizes
    metric, index = randn(b, length, c, seed=1, device=device, dtype=dtype), on(device, index)
    if length >= EXACT:
        metric = metric.sign()  # in 4**k channels norms, products and sums are exact, in any order
    expected = matched(naive_match_tokens, metric, r, index, exact)
    assert same(matched(triton_match.match_tokens, metric, r, index, exact), expected)


@pytest.mark.parametrize("one_kernel", [4, 256])
def test_ties_go_to_the_lower_position(one_kernel, device, monkeypatch):
    """Entries of +-1 in 16 channels: norms and products are exact, and most of them equal."""
    monkeypatch.setattr(triton_match, "ONE_KERNEL", one_kernel)
    for length, r in ((40, 7), (70, 34)):
        metric = randn(2, length, 16, seed=2, device=device).sign()
        assert same(
            matched(triton_match.match_tokens, metric, r, length // 2, True),
            matched(naive_match_tokens, metric, r, length // 2, True),
        )


def test_zeros_and_nan_still_give_a_plan(device):
    """What a broken activation leaves must not write or read outside: the loss reports it later."""
    metric = randn(2, 33, 20, seed=3, device=device)
    metric[0, 4:9], metric[1, 5], metric[1, 8, 3] = 0.0, float("nan"), float("nan")
    plan = matched(triton_match.match_tokens, metric, 7, 16)
    keep, source, destination = plan.keep, plan.source, plan.destination
    assert torch.equal(torch.cat([keep, source], 1).sort(1).values, torch.arange(33, device=device).expand(2, -1))
    assert 0 <= destination.min() and destination.max() < 26
    assert not (destination == 16 * 26 // 33).any()


def test_strided_metric(device):
    metric = randn(2, 33, 60, seed=4, device=device)[..., 20:40]
    assert same(matched(triton_match.match_tokens, metric, 5, 16), matched(naive_match_tokens, metric, 5, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [(), ("residual",), ("size",), ("residual", "size")])
@pytest.mark.parametrize("sizes", [(2, 33, 20, 16, 16), (1, 21, 300, 3, 0), large((8, 197, 768, 11, 98))])
def test_the_average_and_the_gradient_of_each_token(sizes, given, dtype, device):
    b, length, c, r, index = sizes
    hidden = randn(b, length, 2 * c, seed=5, device=device, dtype=dtype)[..., :c]
    plan = matched(naive_match_tokens, hidden, r, index)
    size = randn(b, length, 1, seed=7, device=device).abs().round() + 1 if "size" in given else None
    tensors = {"hidden": hidden}
    if "residual" in given:
        tensors["residual"] = randn(b, length, c, seed=6, device=device)

    def run(function):
        return lambda hidden, residual=None: function(hidden, residual, size, plan)[0]

    tolerance = None if dtype == torch.float32 else 5e-3
    compare(run(triton_merge.merge_tokens), run(naive_merge_tokens), tensors, tolerance)


def test_new_sizes(device):
    hidden = randn(2, 33, 20, seed=5, device=device)
    plan = matched(naive_match_tokens, hidden, 16, 16)
    size = randn(2, 33, 1, seed=7, device=device).abs().round() + 1
    for given in (None, size):
        _, got = triton_merge.merge_tokens(hidden, None, given, plan)
        assert_close_rms(got, naive_merge_tokens(hidden, None, given, plan)[1], tolerance=0)


@pytest.mark.parametrize("checks", [QUICK, slow(FULL)])
def test_registration(checks, device):
    hidden, residual = (randn(2, 33, 20, seed=i, device=device).requires_grad_() for i in (1, 2))
    plan = matched(naive_match_tokens, hidden.detach(), 5, 16)
    opcheck(torch.ops.rmeeto.triton_match_tokens, (hidden.detach(), 5, None, 16, True), test_utils=checks)
    size = torch.ones(2, 33, 1, device=device)
    opcheck(
        torch.ops.rmeeto.triton_merge_tokens,
        (hidden, residual, size, plan.keep, plan.source, plan.destination),
        test_utils=checks,
    )
