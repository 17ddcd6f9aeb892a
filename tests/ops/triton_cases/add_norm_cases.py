"""The norm's kernels against the definition."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from rmeeto.ops.add_norm import triton_add_norm
from rmeeto.ops.add_norm.naive import naive_add_rms_norm
from tests.helpers import assert_close_rms
from tests.ops.triton_cases.common import FULL, QUICK, compare, large, randn, slow

SIZES = [(2, 7, 40), (1, 1, 3), large((3, 197, 192)), large((128, 197, 768)), large((1, 1569, 576))]


def inputs(b, length, c, device, dtype, residual=True):
    return {
        "hidden": randn(b, length, c, seed=1, device=device, dtype=dtype),
        "residual": randn(b, length, c, seed=2, device=device) if residual else None,
        "weight": randn(c, seed=3, device=device),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_sum_and_its_norm(sizes, residual, dtype, device):
    compare(
        triton_add_norm.add_rms_norm,
        naive_add_rms_norm,
        inputs(*sizes, device, dtype, residual),
        None if dtype == torch.float32 else 5e-3,
    )


def test_rows_that_several_programs_share(device, monkeypatch):
    monkeypatch.setattr(triton_add_norm, "num_sms", lambda device: 1)
    compare(triton_add_norm.add_rms_norm, naive_add_rms_norm, inputs(3, 13, 20, device, torch.float32))


def test_autocast_gives_the_type_that_the_projection_wants(device):
    hidden, residual, weight = inputs(2, 7, 40, device, torch.bfloat16).values()
    with torch.autocast(device, torch.bfloat16):
        normed, total = triton_add_norm.add_rms_norm(hidden, residual, weight)
    expected, sum_ = naive_add_rms_norm(hidden, residual, weight)
    assert (normed.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert_close_rms(normed, expected)
    assert torch.equal(total, sum_)


@pytest.mark.parametrize("checks", [QUICK, slow(FULL)])
def test_registration(checks, device):
    hidden, residual, weight = (t.requires_grad_() for t in inputs(2, 7, 40, device, torch.float32).values())
    opcheck(
        torch.ops.rmeeto.triton_add_rms_norm,
        (hidden, residual, weight, torch.bfloat16, 1e-5),
        test_utils=checks,
    )
