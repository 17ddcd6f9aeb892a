"""What the kernels are not launched for: no samples, and more than a grid has room for."""

from __future__ import annotations

import pytest
import torch

from rmeeto.merge import Tokens
from rmeeto.ops import Direction, triton_support
from rmeeto.ops.add_norm.triton_add_norm import add_rms_norm
from rmeeto.ops.conv1d.triton_conv1d import bidirectional_conv1d
from rmeeto.ops.selective_scan.triton_scan import bidirectional_scan, selective_scan
from rmeeto.ops.token_merge.triton_match import match_tokens
from rmeeto.ops.token_merge.triton_merge import merge_tokens

LENGTH, CHANNELS, STATES, R = 9, 4, 3, 2


def plan(x):
    return match_tokens(x.detach(), R, Tokens(LENGTH, 4))


def direction(x, weight):
    states = x[..., :STATES]
    return Direction(x, x, -weight[:, None].expand(-1, STATES).exp(), states, states, weight, weight)


CALLS = {
    "norm": lambda x, weight: add_rms_norm(x, x, weight)[0],
    "conv": lambda x, weight: bidirectional_conv1d(x, *2 * (weight[:, None, None], weight))[0],
    "both directions": lambda x, weight: bidirectional_scan(direction(x, weight), direction(x, weight), x),
    "one direction": lambda x, weight: direction(x, weight).scan(selective_scan),
    "match": lambda x, weight: plan(x).keep * weight.sum(),
    "merge": lambda x, weight: merge_tokens(x * weight, x, None, plan(x))[0],
}


@pytest.mark.parametrize("name", CALLS)
def test_no_samples(name, device):
    x = torch.zeros(0, LENGTH, CHANNELS, device=device, requires_grad=True)
    weight = torch.ones(CHANNELS, device=device, requires_grad=True)
    out = CALLS[name](x, weight)
    assert out.shape[:2] == (0, LENGTH - R if name in ("match", "merge") else LENGTH)
    out.sum().backward()
    assert weight.grad.tolist() == [0] * CHANNELS


@pytest.mark.parametrize("name", [name for name in CALLS if name != "norm"])
def test_more_samples_than_a_grid_has_room_for(name, device, monkeypatch):
    monkeypatch.setattr(triton_support, "MAX_BATCH", 2)
    x, weight = torch.zeros(3, LENGTH, CHANNELS, device=device), torch.ones(CHANNELS, device=device)
    with torch.no_grad(), pytest.raises(ValueError, match="up to 2 samples, got 3; split the batch"):
        CALLS[name](x, weight)
