"""The convolution's kernels against the definition."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from rmeeto.ops.conv1d import triton_conv1d
from rmeeto.ops.conv1d.naive import naive_bidirectional_conv1d
from tests.ops.triton_cases.common import FULL, QUICK, compare, large, randn, slow

SIZES = [  # B, L, D, K
    (2, 13, 40, 4),
    (1, 1, 3, 4),
    (3, 2, 70, 2),
    slow((1, 70, 33, 3)),
    *(large((b, length, 200, 4)) for b in (1, 3) for length in (1, 2, 63, 197, 500, 1569)),
]


def inputs(b, length, d, k, device, dtype):
    """x as the first half of in_proj's output."""
    shapes = {"weight": (d, 1, k), "bias": (d,), "weight_b": (d, 1, k), "bias_b": (d,)}
    parameters = {name: randn(*s, seed=i, device=device) for i, (name, s) in enumerate(shapes.items())}
    return {"x": randn(b, length, 2 * d, seed=9, device=device, dtype=dtype)[..., :d]} | parameters


@pytest.mark.parametrize("sizes", SIZES)
def test_both_directions(sizes, device):
    compare(
        triton_conv1d.bidirectional_conv1d,
        naive_bidirectional_conv1d,
        inputs(*sizes, device, torch.float32),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(2, 21, 40, 4), large((3, 197, 200, 4))])
def test_half_precision_storage(sizes, dtype, device):
    compare(triton_conv1d.bidirectional_conv1d, naive_bidirectional_conv1d, inputs(*sizes, device, dtype))


@pytest.mark.parametrize("length", [70, large(1569)])
def test_tokens_cut_into_chunks(length, device, monkeypatch):
    monkeypatch.setattr(triton_conv1d, "num_sms", lambda device: 1000)
    assert triton_conv1d._chunks(length, 32, 1, torch.device(device))[0] > 1
    compare(
        triton_conv1d.bidirectional_conv1d,
        naive_bidirectional_conv1d,
        inputs(1, length, 24, 4, device, torch.float32),
    )


def test_channel_major_tensors(device):
    tensors = inputs(2, 9, 20, 4, device, torch.float32)
    tensors["x"] = tensors["x"].transpose(1, 2).contiguous().transpose(1, 2)
    compare(triton_conv1d.bidirectional_conv1d, naive_bidirectional_conv1d, tensors)


@pytest.mark.parametrize("checks", [QUICK, slow(FULL)])
def test_registration(checks, device):
    tensors = [t.clone().requires_grad_() for t in inputs(2, 9, 20, 4, device, torch.float32).values()]
    opcheck(torch.ops.rmeeto.triton_conv1d, tensors, test_utils=checks)
