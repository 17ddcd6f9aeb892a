"""Tests fork processes that train, whatever ran before in their own."""

import torch
from torch._subclasses import FakeTensorMode

from tests import forked


def backward() -> float:
    x = torch.ones(2, requires_grad=True)
    x.square().sum().backward()
    return float(x.grad.sum())


def test_a_forked_process_trains_behind_an_export():
    with FakeTensorMode():  # as exports and compilations have it; it makes up a device
        torch.empty(1)
    assert backward() == 4.0
    assert forked.run(2, backward) == [4.0, 4.0]
