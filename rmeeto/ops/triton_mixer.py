"""Convolution, x_proj and scan of a mixer as one step of autograd, on the Triton kernels.

The forward pass launches what the operators launch. The backward pass writes the gradients of x and z into one tensor,
those of a direction's features, B and C into another, and adds the gradient of u that comes through x_proj where the
other one lies. Between operators of their own each of these is a copy of a whole tensor.

Shapes: B batch, L tokens, D channels, N states, R rank; xz (B, L, 2 D).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rmeeto.autocast import full_precision
from rmeeto.ops.conv1d import triton_conv1d
from rmeeto.ops.library import once, operator
from rmeeto.ops.mixer_weights import Weights
from rmeeto.ops.selective_scan import Direction, triton_scan
from rmeeto.ops.selective_scan.direction import flatten
from rmeeto.ops.triton_support import dispatch_keys

_LENGTH = len(Weights._fields)


def mix(xz: Tensor, forward: Weights, backward: Weights, average: bool) -> tuple[Tensor, tuple[Direction, Direction]]:
    """The gated sum (or mean) of both directions' scans, and what the scans have read, without gradients.

    Args:
        xz: (B, L, 2 D): what is convolved and scanned, and the gate.
        forward, backward: the directions' weights.
        average: halve the sum.
    """
    out, *made = _Mix.apply(xz, average, *forward, *backward)
    u, u_b, projected, projected_b = made
    return out, (_direction(u, projected, forward), _direction(u_b, projected_b, backward))


def _direction(u: Tensor, projected: Tensor, w: Weights) -> Direction:
    rank, states = w.dt_weight.shape[1], w.A_log.shape[1]
    features, B, C = projected.split([rank, states, states], dim=-1)
    return Direction(u, features, w.A_log, B, C, w.D, w.dt_bias, w.dt_weight, log_A=True)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.flatten(0, 1)


def _pairs(weights: Sequence[Tensor]) -> tuple[Weights, Weights]:
    return Weights(*weights[:_LENGTH]), Weights(*weights[_LENGTH:])


def _taps(pair: Sequence[Weights]) -> list[Tensor]:
    return [tensor for w in pair for tensor in (w.taps, w.bias)]


def _run_backward(
    dout: Tensor, xz: Tensor, ungated: Tensor, states: Tensor, us: Sequence[Tensor], projected: Sequence[Tensor],
    weights: Sequence[Tensor], average: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dxz; and both directions' gradients of the convolution's weights (see `triton_conv1d.gradients`), of x_proj's
    (2, R + 2 N, D), of dt_proj's (2, D, R), and of A, D and the bias (see `triton_scan.parameter_gradients`)."""
    pair = _pairs(weights)
    directions = [_direction(*read) for read in zip(us, projected, pair)]
    x, z = xz.chunk(2, dim=-1)
    dxz, _, dx_proj, ddt, _ = _fake(dout, xz, ungated, states, us, projected, weights, average)
    dx, dz = dxz.chunk(2, dim=-1)
    du, ddelta, _, dBC, dparameters = triton_scan.run_backward(
        dout, ungated, states, *flatten(directions, z), *_flags(average), dz=dz
    )
    rank = pair[0].dt_weight.shape[1]
    dprojected = xz.new_empty((2, *projected[0].shape))
    dprojected[..., rank:].copy_(dBC)
    for k, (w, d) in enumerate(zip(pair, directions)):
        through = _rows(dprojected[k])
        torch.mm(_rows(ddelta[k]).T, _rows(d.delta), out=ddt[k])
        torch.mm(_rows(ddelta[k]), w.dt_weight.to(xz.dtype), out=through[:, :rank])
        torch.mm(through.T, _rows(d.u), out=dx_proj[k])
        _rows(du[k]).addmm_(through, w.x_proj)
    _, dtaps = triton_conv1d.backward(du[0], du[1], x, *_taps(pair), dx=dx)
    return dxz, dtaps, dx_proj, ddt, dparameters


def _fake(
    dout: Tensor, xz: Tensor, ungated: Tensor, states: Tensor, us: Sequence[Tensor], projected: Sequence[Tensor],
    weights: Sequence[Tensor], average: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    w = _pairs(weights)[0]
    sizes = 2 * (w.taps.numel() + w.bias.numel()), (2, w.A_log.numel() + 2 * w.D.numel())
    dtaps, dparameters = (xz.new_empty(size, dtype=torch.float32) for size in sizes)
    dx_proj, ddt = (xz.new_empty((2, *weight.shape)) for weight in (w.x_proj, w.dt_weight))
    return xz.new_empty(xz.shape), dtaps, dx_proj, ddt, dparameters


def _flags(average: bool) -> triton_scan.Flags:
    return triton_scan.Flags(softplus=True, reverse=False, average=average, log_A=True)


_backward_operator = operator(
    "triton_mixer_backward",
    "(Tensor dout, Tensor xz, Tensor ungated, Tensor states, Tensor[] us, Tensor[] projected, Tensor[] weights, "
    "bool average) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake,
    keys=dispatch_keys(),
)


def _backward(ctx: Any, dout: Tensor, *_: Any) -> tuple[Any, ...]:
    xz, ungated, states, u, u_b, projected, projected_b, *weights = ctx.saved_tensors
    dxz, dtaps, dx_proj, ddt, dparameters = _backward_operator(
        dout, xz, ungated, states, [u, u_b], [projected, projected_b], weights, ctx.average
    )
    pair = _pairs(weights)
    dtaps = triton_conv1d.gradients(dtaps, pair[0].taps)
    dx_proj, ddt = dx_proj.to(ctx.x_proj_dtype), ddt.to(pair[0].dt_weight.dtype)
    gradients: list[Tensor | None] = []
    for k, w in enumerate(pair):
        own = [g.to(t.dtype) for g, t in zip(dtaps[2 * k :], (w.taps, w.bias))]
        dA, dD, dbias = triton_scan.parameter_gradients(dparameters[k], _direction(u, projected, w))
        gradients += Weights(*own, dx_proj[k], ddt[k], dbias, dA, dD)
    return dxz, None, *gradients


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, xz: Tensor, average: bool, *weights: Tensor) -> tuple[Tensor, ...]:
        x, z = xz.chunk(2, dim=-1)
        # x_proj's weights are cast as autocast would.
        pair = [w._replace(x_proj=w.x_proj.to(xz.dtype)) for w in _pairs(weights)]
        us = triton_conv1d.conv(x, *_taps(pair))
        with full_precision(xz.device):
            projected = [(_rows(u) @ w.x_proj.T).view(*u.shape[:2], -1) for u, w in zip(us, pair)]
        directions = [_direction(*read) for read in zip(us, projected, pair)]
        out, ungated, states = triton_scan.scan(*flatten(directions, z), *_flags(average), True)
        ctx.average, ctx.x_proj_dtype = average, _pairs(weights)[0].x_proj.dtype
        ctx.save_for_backward(xz, ungated, states, *us, *projected, *pair[0], *pair[1])
        ctx.mark_non_differentiable(*us, *projected)
        ctx.set_materialize_grads(False)
        return out, *us, *projected

    backward = staticmethod(once(_backward))
