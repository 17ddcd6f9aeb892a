"""mamba_ssm and causal_conv1d as backends: stand-ins with their public functions, channel-major and one-way."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from rmeeto.ops import Direction
from rmeeto.ops.backend import BackendUnavailable
from rmeeto.ops.conv1d import upstream as conv1d
from rmeeto.ops.conv1d.naive import naive_bidirectional_conv1d, naive_causal_conv1d
from rmeeto.ops.selective_scan import upstream as scan
from rmeeto.ops.selective_scan.naive import naive_bidirectional_scan, naive_selective_scan
from tests.helpers import assert_close_rms

SCAN_MODULES = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """As strict as the compiled kernel: channel-major, one storage type, fp32 parameters."""
    assert all(t.dtype == u.dtype for t in (delta, B, C)) and (z is None or z.dtype == u.dtype)
    assert all(t is None or t.dtype == torch.float32 for t in (A, D, delta_bias))
    assert all(t is None or t.stride(-1) == 1 for t in (u, delta, B, C, z))
    u, delta, B, C = (t.transpose(1, 2) for t in (u, delta, B, C))
    z = None if z is None else z.transpose(1, 2)
    y = naive_selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return y.transpose(1, 2)


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None):
    assert activation == "silu" and weight.ndim == 2 and weight.dtype == bias.dtype == x.dtype
    return naive_causal_conv1d(x.transpose(1, 2), weight.unsqueeze(1), bias).transpose(1, 2)


@pytest.fixture
def packages(monkeypatch):
    """Both packages and their compiled extensions."""
    for name in (*SCAN_MODULES, "selective_scan_cuda", "causal_conv1d", "causal_conv1d_cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["mamba_ssm.ops.selective_scan_interface"].selective_scan_fn = selective_scan_fn
    sys.modules["causal_conv1d"].causal_conv1d_fn = causal_conv1d_fn


def direction(dtype):
    u, delta = torch.randn(2, 9, 6, dtype=dtype), torch.randn(2, 9, 6, dtype=dtype)
    B, C = torch.randn(2, 9, 8, dtype=dtype).chunk(2, dim=-1)
    return Direction(u, delta, -torch.rand(6, 4), B, C, torch.randn(6), torch.randn(6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("average", [False, True])
def test_the_scan_flips_where_upstream_has_one_direction(packages, average, dtype):
    torch.manual_seed(0)
    forward, backward = direction(dtype), direction(dtype)
    leaves = [t.requires_grad_() for t in (*forward[:7], *backward[:7])]
    z = torch.randn(2, 9, 12, dtype=dtype)[..., 6:]
    one_way, both = scan.load()
    expected = naive_bidirectional_scan(forward, backward, z, average)
    got = both(forward, backward, z, average)
    assert_close_rms(got, expected)
    seed = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(got, leaves, seed), torch.autograd.grad(expected, leaves, seed)):
        assert_close_rms(a, b, tolerance=2e-2 if dtype == torch.bfloat16 else 1e-5)
    for reverse in (False, True):
        plain = forward.scan(one_way, reverse=reverse)
        assert_close_rms(plain, forward.scan(naive_selective_scan, reverse=reverse))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_convolution_flips_where_upstream_has_one_direction(packages, dtype):
    x = torch.randn(2, 9, 12, dtype=dtype)[..., :6]
    parameters = torch.randn(6, 1, 4), torch.randn(6), torch.randn(6, 1, 4), torch.randn(6)
    got = conv1d.load()(x, *parameters)
    for a, b in zip(got, naive_bidirectional_conv1d(x, *parameters), strict=True):
        assert_close_rms(a, b)


@pytest.mark.parametrize("load", [scan.load, conv1d.load])
def test_a_missing_package_says_so(load, monkeypatch):
    for name in ("mamba_ssm", "selective_scan_cuda", "causal_conv1d", "causal_conv1d_cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailable, match="does not import"):
        load()


@pytest.mark.parametrize(
    ("load", "extension"), [(scan.load, "selective_scan_cuda"), (conv1d.load, "causal_conv1d_cuda")]
)
def test_a_package_without_its_compiled_extension_is_not_used(packages, load, extension, monkeypatch):
    """mamba_ssm can be built without the kernel of Mamba-1, and then still imports."""
    monkeypatch.setitem(sys.modules, extension, None)
    with pytest.raises(BackendUnavailable, match=extension):
        load()


def test_an_extension_for_another_torch_says_why(packages, monkeypatch, tmp_path):
    (tmp_path / "selective_scan_cuda.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "selective_scan_cuda")
    with pytest.raises(BackendUnavailable, match="undefined symbol: _ZN3c10"):
        scan.load()
