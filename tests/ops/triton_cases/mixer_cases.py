"""A mixer's autograd function against its operators one by one: gradients, and what is launched."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile
from triton.runtime import interpreter

from rmeeto.nn import BiMamba
from rmeeto.ops.mixer import one_function
from tests.helpers import assert_close_rms
from tests.ops.triton_cases.common import use_triton
from tests.ops.triton_cases.conftest import INTERPRETED

# What is a launch each, of torch's own operators that a mixer's passes may hold.
LAUNCHED = ("mm", "addmm", "addmm_", "bmm", "add", "add_", "cat", "sum", "copy_", "mul", "zero_", "clone")


@pytest.fixture
def mixer(device, monkeypatch) -> BiMamba:
    use_triton(monkeypatch)
    torch.manual_seed(0)
    return BiMamba(8).to(device)


@pytest.fixture
def x(device) -> Tensor:
    return torch.randn(1, 9, 8, device=device, requires_grad=True)


def one_by_one(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    monkeypatch.setattr(BiMamba, "_is_plain", lambda self: not on)


def passed(mixer: BiMamba, x: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Outputs and gradients."""
    mixer.zero_grad()
    x.grad = None
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        out, ssm = mixer(x, return_ssm=True)
    assert not any(t.requires_grad for t in (ssm.B, ssm.C, ssm.delta))
    (out.float() * torch.linspace(-1, 1, out.numel(), device=x.device).view(out.shape)).sum().backward()
    gradients = {name: p.grad for name, p in mixer.named_parameters()}
    assert all(g.dtype == torch.float32 for g in gradients.values())
    return {"out": out, "B": ssm.B, "C": ssm.C, "delta": ssm.delta, "x": x.grad} | gradients


@pytest.mark.parametrize(("dtype", "bound"), [pytest.param(None, 1e-6, marks=pytest.mark.slow), (torch.bfloat16, 5e-3)])
def test_the_same_outputs_and_gradients(mixer, x, dtype, bound, monkeypatch):
    made = []
    for on in (False, True):
        one_by_one(monkeypatch, on)
        made.append(passed(mixer, x, dtype))
    for name, tensor in made[0].items():
        assert_close_rms(tensor.float(), made[1][name].float(), name, bound)


@pytest.mark.skipif(not INTERPRETED, reason="counted where kernels can be left out")
def test_fewer_launches_and_no_copy_of_a_sequence(mixer, x, monkeypatch):
    """Of the backward pass under autocast, the Triton kernels (two, in both ways) left out: 23 instead of 31."""
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *_, **__: None)
    counts = []
    for on in (False, True):
        one_by_one(monkeypatch, on)
        mixer.zero_grad()
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            out = mixer(x)
        with profile() as seen:
            out.backward(torch.ones_like(out))
        names = [event.name.removeprefix("aten::") for event in seen.events()]
        counts.append(Counter(name for name in names if name in LAUNCHED))
    ours, theirs = counts
    assert not any(ours[name] for name in ("cat", "add", "add_", "clone", "zero_")), ours
    assert theirs["cat"] == 3 and theirs["add"] == 2, "x with z, and features with B and C; u twice"
    assert not theirs["zero_"] and not theirs["clone"], "of what has no gradient, and of the convolution's taps"
    assert ours.total() <= 23 and theirs.total() - ours.total() >= 8, counts


def test_what_is_not_its_weights_alone_is_called(mixer, x, monkeypatch):
    """A hook on x_proj sees what it projects."""
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *_, **__: None)
    assert mixer._is_plain() and one_function(mixer.in_proj(x)) is not None
    seen = []
    handle = mixer.x_proj_b.register_forward_hook(lambda *given: seen.append(given[2].shape))
    mixer(x)
    assert seen == [(1, 9, 33)] and not mixer._is_plain()
    handle.remove()
    assert mixer._is_plain()
    mixer.dt_proj = nn.Sequential(mixer.dt_proj)
    assert not mixer._is_plain()


def test_it_is_for_training_on_triton(mixer, x, monkeypatch):
    xz = mixer.in_proj(x)
    assert one_function(xz) is not None
    assert one_function(xz.detach()) is None and one_function(xz.double()) is None and one_function(xz[:0]) is None
    with torch.no_grad():
        assert one_function(xz) is None
    monkeypatch.setenv("RMEETO_BACKEND", "torch")
    assert one_function(xz) is None


def test_it_has_no_second_derivative(mixer, x):
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(mixer(x).sum(), x, create_graph=True)
