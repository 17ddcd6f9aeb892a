"""The models as they run on upstream's kernels: one-way, channel-major, with flips, two merges in plain PyTorch.

Restated from the mathematics and from `mamba_ssm`'s and `causal_conv1d`'s public functions. The residual add and norm
are ours (upstream has a fused one too), so that the comparison is of mixers and merges.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor, nn

from rmeeto.merge import MergeConfig, match, merge_wavg
from rmeeto.nn import BiMamba, TokenState, VisionMamba
from rmeeto.nn import block as block_module
from rmeeto.ops.conv1d.naive import naive_causal_conv1d
from rmeeto.ops.selective_scan.eager import eager_selective_scan


@dataclasses.dataclass(frozen=True)
class Kernels:
    """`selective_scan_fn` and `causal_conv1d_fn`, upstream's or stand-ins."""

    scan: Callable
    conv: Callable
    name: str


def find(folder: Path | None, device: torch.device) -> Kernels | str:
    """The kernels for a device: upstream's, on a CPU stand-ins; or why they are not there."""
    if device.type == "cpu":
        return stand_ins()
    try:
        return upstream_kernels(folder)
    except Exception as error:  # a broken extension can raise anything
        log = folder / "build.json" if folder else None
        built = json.loads(log.read_text())["error"] if log and log.exists() else "not built"
        return f"{type(error).__name__}: {error} (build: {built})"


def upstream_kernels(folder: Path | None) -> Kernels:
    """Upstream's, from a folder that `build.py` has filled (or wherever else they import from).

    Raises:
        ImportError: they do not import; the message says why.
    """
    if folder and folder.exists():
        paths = (folder, *folder.glob("*.whl"), *folder.glob("causal_conv1d-*/"))
        sys.path[:0] = [str(path.resolve()) for path in paths]
        for source in folder.glob("mamba_ssm-*/mamba_ssm"):
            # Its __init__ imports every model of the package, and what they need; the scan's interface needs neither.
            package = ModuleType("mamba_ssm")
            package.__path__ = [str(source.resolve())]
            sys.modules["mamba_ssm"] = package
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    conv = importlib.import_module("causal_conv1d").causal_conv1d_fn
    return Kernels(scan, conv, "upstream")


def stand_ins() -> Kernels:
    """Plain PyTorch with upstream's signatures, for a run without a GPU."""

    def scan(*tensors: Tensor, z: Tensor, delta_softplus: bool, **vectors: Tensor) -> Tensor:
        u, delta, A, B, C = (t.transpose(1, 2) if t.ndim == 3 else t for t in tensors)
        return eager_selective_scan(u, delta, A, B, C, z=z.mT, **vectors).mT

    def conv(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        return naive_causal_conv1d(x.transpose(1, 2), weight.unsqueeze(1), bias).transpose(1, 2)

    return Kernels(scan, conv, "stand-in")


class OneWayMixer(nn.Module):
    """`BiMamba` with one call a direction: flip, convolve, project, scan, flip back; then add, halve, project."""

    def __init__(self, mixer: BiMamba, kernels: Kernels) -> None:
        super().__init__()
        self.mixer, self.kernels = mixer, kernels

    def forward(self, x: Tensor, return_ssm: bool = False) -> Tensor:
        m, (batch, length, _) = self.mixer, x.shape
        weight = m.in_proj.weight
        if torch.is_autocast_enabled(x.device.type):
            x, weight = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weight))
        xz = (weight @ x.reshape(batch * length, -1).t()).view(-1, batch, length).transpose(0, 1)
        y = self._one_way(xz, m.conv1d, m.x_proj, m.dt_proj, m.A_log, m.D)
        y = y + self._one_way(xz.flip(-1), m.conv1d_b, m.x_proj_b, m.dt_proj_b, m.A_b_log, m.D_b).flip(-1)
        return m.out_proj((y / 2 if m.average else y).transpose(1, 2))

    def _one_way(
        self, xz: Tensor, conv: nn.Module, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor
    ) -> Tensor:
        m, (batch, _, length) = self.mixer, xz.shape
        x, z = xz.chunk(2, dim=1)
        u = self.kernels.conv(x, conv.weight.squeeze(1).to(x.dtype), conv.bias.to(x.dtype), activation="silu")
        projected = x_proj(u.transpose(1, 2).reshape(batch * length, -1))
        dt, B, C = projected.split([m.dt_rank, m.d_state, m.d_state], dim=-1)
        delta = (dt_proj.weight.to(dt.dtype) @ dt.t()).view(-1, batch, length).transpose(0, 1)
        B, C = (t.view(batch, length, -1).transpose(1, 2).contiguous() for t in (B, C))
        A = -torch.exp(A_log.float())
        bias = dt_proj.bias.float()
        return self.kernels.scan(u, delta, A, B, C, D=D.float(), z=z, delta_bias=bias, delta_softplus=True)


def two_merges(state: TokenState, r: int, config: MergeConfig, drop_path: nn.Module, _: object = None) -> TokenState:
    """One matching, applied to the hidden state and to the residual stream in turn."""
    plan = match(state.hidden.detach(), r, state.class_index)
    residual, _ = merge_wavg(plan, state.residual, state.size)
    hidden, size = merge_wavg(plan, drop_path(state.hidden), state.size)
    return state._replace(hidden=hidden, residual=residual, size=size, class_index=plan.class_index, ssm=None)


class Released(nn.Module):
    """A copy of a model that computes the same on one-way kernels."""

    def __init__(self, model: VisionMamba, kernels: Kernels) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for block in self.model.layers:
            block.mixer = OneWayMixer(block.mixer, kernels)

    def forward(self, x: Tensor) -> Tensor:
        with mock.patch.object(block_module, "merge_state", two_merges):
            return self.model(x)
