"""Training through the fast paths: the losses of PyTorch, and no more memory kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rmeeto.nn import BiMamba
from rmeeto.ops import add_rms_norm
from rmeeto.ops.selective_scan import BIDIRECTIONAL
from tests.helpers import rms_ratio


class Tokens(nn.Module):
    """Two blocks: add, normalise, mix."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(BiMamba(16, d_state=8) for _ in range(2))
        self.weights = nn.ParameterList(torch.ones(16) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = None
        for mixer, weight in zip(self.mixers, self.weights, strict=True):
            normed, residual = add_rms_norm(x, residual, weight)
            x = mixer(normed)
        return x + residual


def losses(backend: str, monkeypatch: pytest.MonkeyPatch, autocast: bool = False) -> torch.Tensor:
    """Of 20 steps on one batch."""
    monkeypatch.setenv("RMEETO_BACKEND", backend)
    torch.manual_seed(0)
    model, x, target = Tokens(), torch.randn(4, 33, 16), torch.randn(4, 33, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    curve = []
    for _ in range(20):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = model(x)
        loss = (out.float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.detach())
    return torch.stack(curve)


@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-5), (True, 1e-2)])
def test_twenty_steps_have_the_losses_of_pytorch(autocast, tolerance, monkeypatch):
    expected = losses("torch", monkeypatch, autocast)
    assert expected[-1] < 0.8 * expected[0]
    assert rms_ratio(losses("auto", monkeypatch, autocast), expected) < tolerance


def kept_bytes(backend: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Memory that autograd holds between forward and backward, parameters left out."""
    monkeypatch.setenv("RMEETO_BACKEND", backend)
    model, kept = Tokens(), {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(torch.randn(4, 197, 16))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert out.requires_grad
    return sum(size for address, size in kept.items() if address not in parameters)


def test_no_more_memory_is_kept_than_by_pytorch(monkeypatch):
    if BIDIRECTIONAL.chosen("cpu") != "cpp":
        pytest.skip("the C++ kernel cannot be built here")
    assert kept_bytes("cpp", monkeypatch) < 0.2 * kept_bytes("torch", monkeypatch)
