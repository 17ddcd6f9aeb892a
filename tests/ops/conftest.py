"""What the operators' tests share: allocations that show what nobody wrote."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def nan_filled(monkeypatch):
    """`torch.empty` full of NaN, so that an element that a kernel does not write fails the comparison."""
    empty = torch.empty

    def filled(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", filled)
