"""The selective scan on the C++ kernel, registered with torch.library as ``rmeeto::scan``.

Shapes: B batch, L tokens, D channels, N states. u, delta, z (B, L, D); A (D, N); B, C (B, L, N); D, delta_bias (D,).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rmeeto.ops.backend import are_steps_left
from rmeeto.ops.cpp_support import (
    Struct,
    Task,
    as_type,
    constant,
    integers,
    pointer,
    pointers,
    rows,
    run,
    spread,
    suffix,
)
from rmeeto.ops.library import operator
from rmeeto.ops.selective_scan import eager
from rmeeto.ops.selective_scan.direction import (
    NUM_TENSORS,
    PER_DIRECTION,
    SCHEMA,
    Direction,
    flatten,
    of_tensors,
    unflatten,
)


class DirectionStruct(Struct):
    """struct Direction of csrc/scan.cpp."""

    __slots__ = ()
    _fields_ = [
        *pointers("u", "delta", "B", "C", "A", "D", "bias"),
        *integers("u_batch", "u_token", "delta_batch", "delta_token"),
        *integers("B_batch", "B_token", "B_state", "C_batch", "C_token", "C_state", "reverse"),
        *pointers("states", "du", "ddelta", "dB", "dC", "dA", "dD", "dbias"),
    ]


class ScanStruct(Task):
    """struct Scan of csrc/scan.cpp."""

    __slots__ = ()
    _fields_ = [
        *integers("directions", "batch", "length", "channels", "num_states", "softplus", "halve"),
        *pointers("z"),
        *integers("z_batch", "z_token"),
        *pointers("out", "dout"),
        *integers("dout_batch", "dout_token"),
        *pointers("dz"),
        ("direction", DirectionStruct * 2),
    ]


@of_tensors
def selective_scan(d: Direction, z: Tensor | None, softplus: bool, reverse: bool) -> Tensor:
    """Same function as `naive_selective_scan`; float64 and empty tensors go to the eager loop."""
    if d.u.dtype == torch.float64 or d.u.numel() == 0:
        return d.scan(eager.eager_selective_scan, z, reverse, softplus)
    return _scan([d], z, softplus, reverse, False)


def bidirectional_scan(forward: Direction, backward: Direction, z: Tensor, average: bool = False) -> Tensor:
    """Same function as `naive_bidirectional_scan`; float64 and empty tensors go to the eager loop."""
    if z.dtype == torch.float64 or z.numel() == 0:
        return eager.eager_bidirectional_scan(forward, backward, z, average)
    projected = not are_steps_left()
    return _scan([forward.plain(projected), backward.plain(projected)], z, True, False, average)


def _scan(directions: Sequence[Direction], z: Tensor | None, softplus: bool, reverse: bool, average: bool) -> Tensor:
    """Bring the tensors to the types of the kernel and call it: bf16 if all sequences are, else fp32."""
    sequences = [z, *(tensor for d in directions for tensor in (d.u, d.delta, d.B, d.C))]
    half = all(tensor is None or tensor.dtype == torch.bfloat16 for tensor in sequences)
    storage = torch.bfloat16 if half else torch.float32
    stored = [
        Direction(
            *(as_type(d.u, storage), as_type(d.delta, storage), as_type(d.A, torch.float32)),
            *(as_type(d.B, storage), as_type(d.C, storage)),
            *(None if t is None else as_type(t, torch.float32) for t in (d.D, d.delta_bias, d.dt_weight)),
        )
        for d in directions
    ]
    tensors = flatten(stored, None if z is None else as_type(z, storage))
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    out, _ = _scan_operator(*tensors, softplus, reverse, average, keep)
    return as_type(out, directions[0].u.dtype)


def _forward_cpu(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, keep = arguments
    u, A, second = inputs[0], inputs[2], inputs[PER_DIRECTION]
    out = torch.empty(u.shape, dtype=u.dtype)
    states = torch.empty(_states_shape(u, A, second) if keep else (0,), dtype=torch.float32)
    _run("forward", inputs, states, out)
    return out, states


def _backward_cpu(dout: Tensor, states: Tensor, *inputs: Any) -> list[Tensor]:
    dout = rows(dout.to(inputs[0].dtype))
    gradients = [None if t is None else torch.empty(t.shape, dtype=t.dtype) for t in inputs[:NUM_TENSORS]]
    _run("backward", inputs, states, None, dout, gradients)
    return [gradient for gradient in gradients if gradient is not None]


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    u, A, second, keep = arguments[0], arguments[2], arguments[PER_DIRECTION], arguments[-1]
    shape = _states_shape(u, A, second) if keep else (0,)
    return torch.empty(u.shape, dtype=u.dtype, device=u.device), u.new_empty(shape, dtype=torch.float32)


def _backward_fake(dout: Tensor, states: Tensor, *inputs: Any) -> list[Tensor]:
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in inputs[:NUM_TENSORS] if t is not None]


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    states = output[1]
    ctx.mark_non_differentiable(states)
    ctx.set_materialize_grads(False)  # of the states, which would be filled with zeros
    ctx.flags = inputs[NUM_TENSORS:-1]
    ctx.save_for_backward(states, *inputs[:NUM_TENSORS])


def _backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple:
    states, *tensors = ctx.saved_tensors
    computed = iter(_scan_backward_operator(dout, states, *tensors, *ctx.flags))
    gradients = [None if tensor is None else next(computed) for tensor in tensors]
    return (*gradients, None, None, None, None)


@cache
def _stored() -> tuple[int, int, int]:
    """Tokens between two stored states, and what their channels and states are padded to."""
    return tuple(constant(f"rmeeto_scan_{name}") for name in ("chunk", "pad_channels", "pad_states"))  # type: ignore[return-value]


def _states_shape(u: Tensor, A: Tensor, second: Tensor | None) -> tuple[int, ...]:
    batch, length, channels = u.shape
    chunk, pad_channels, pad_states = _stored()
    padded = -(-channels // pad_channels) * pad_channels * (-(-A.shape[1] // pad_states) * pad_states)
    return (1 if second is None else 2, batch, -(-length // chunk), padded)


def _run(
    name: str,
    inputs: Sequence[Any],
    states: Tensor,
    out: Tensor | None,
    dout: Tensor | None = None,
    gradients: Sequence[Tensor | None] = (None,) * NUM_TENSORS,
) -> None:
    directions, z = unflatten(inputs[:NUM_TENSORS])
    directions = [_prepared(direction) for direction in directions]
    z = None if z is None else rows(z)
    u = directions[0].u
    scan = ScanStruct()
    scan.directions = len(directions)
    scan.batch, scan.length, scan.channels = u.shape
    scan.num_states = directions[0].A.shape[1]
    scan.softplus, reverse, scan.halve = inputs[NUM_TENSORS:]
    scan.z, scan.z_batch, scan.z_token = spread(z)
    scan.out = pointer(out)
    scan.dout, scan.dout_batch, scan.dout_token = spread(dout)
    scan.dz = pointer(gradients[-1])
    for k, d in enumerate(directions):
        to = scan.direction[k]
        to.u, to.u_batch, to.u_token = spread(d.u)
        to.delta, to.delta_batch, to.delta_token = spread(d.delta)
        to.B, to.C, to.A = d.B.data_ptr(), d.C.data_ptr(), d.A.data_ptr()
        to.B_batch, to.B_token, to.B_state = d.B.stride()
        to.C_batch, to.C_token, to.C_state = d.C.stride()
        to.D, to.bias = pointer(d.D), pointer(d.delta_bias)
        to.reverse = reverse or k == 1
        if states.numel():
            to.states = states.data_ptr() + 4 * k * states.stride(0)
        own = gradients[k * PER_DIRECTION : k * PER_DIRECTION + 7]
        to.du, to.ddelta, to.dA, to.dB, to.dC, to.dD, to.dbias = (pointer(gradient) for gradient in own)
    run(f"rmeeto_scan_{name}{suffix(u.dtype)}", scan)


def _prepared(d: Direction) -> Direction:
    """As the kernel takes it: rows of u and delta in one piece; A, D, bias contiguous."""
    D, bias = (None if vector is None else vector.contiguous() for vector in (d.D, d.delta_bias))
    return Direction(rows(d.u), rows(d.delta), d.A.contiguous(), d.B, d.C, D, bias)


_scan_operator = operator(
    "scan",
    f"({SCHEMA}, bool keep) -> (Tensor, Tensor)",
    _forward_cpu,
    _forward_fake,
    _setup_context,
    _backward,
)
_scan_backward_operator = operator(
    "scan_backward", f"(Tensor dout, Tensor states, {SCHEMA}) -> Tensor[]", _backward_cpu, _backward_fake
)
