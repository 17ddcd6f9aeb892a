"""The selective scan on the Triton kernels, registered with torch.library as ``rmeeto::triton_scan``.

Shapes: B batch, L tokens, D channels, N states, R rank. u, z (B, L, D); delta (B, L, D), or features (B, L, R) and
weight (D, R) that it is projected from inside the kernel; A (D, N); B, C (B, L, N); D, bias (D,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmeeto.ops.register import operator
from rmeeto.ops.selective_scan import eager
from rmeeto.ops.selective_scan.naive import plain_direction
from rmeeto.ops.selective_scan.triton_backward import scan_bwd_kernel
from rmeeto.ops.selective_scan.triton_forward import scan_fwd_kernel, scan_state_fwd_kernel
from rmeeto.ops.triton_support import (
    contiguous_rows,
    dispatch_keys,
    num_sms,
    on_device,
    power_of_two,
)

# A tile is TOKENS x G x N x W, scanned by one warp. TOKENS is also how far apart states are stored. (1, 16) compiles to
# fewer instructions forward, but spills in some settings: for a GPU to decide, see benchmarks/gpu/operators.py.
TOKENS, BLOCK = 8, 16
FORWARD_TILE, BACKWARD_TILE = (2, 8), (2, 8)  # G, W; their product is BLOCK
# Registers of a forward thread: 12 warps then fit a multiprocessor. The backward kernel needs all 255.
FORWARD_REGISTERS = 168
BACKWARD_WARPS = 16  # a multiprocessor gets before one of them takes several groups of channels
# Every POLYNOMIAL-th exponential by FMA instead of the special function unit. 0 for none: by the compiled kernel's
# instruction count the issue slots are as busy as that unit, so a polynomial takes from where nothing is free.
POLYNOMIAL = 0

_DIRECTION = (
    "Tensor{0} u{1}, Tensor{0} delta{1}, Tensor? weight{1}, Tensor? bias{1}, Tensor{0} A{1}, Tensor{0} B{1}, "
    "Tensor{0} C{1}, Tensor? D{1}"
)
_INPUTS = (
    f"{_DIRECTION.format('', '')}, {_DIRECTION.format('?', '2')}, Tensor? z, "
    "bool softplus, bool reverse, bool average, bool log_A"
)
_PER_DIRECTION, _NUM_TENSORS = 8, 17
_SEQUENCES = (0, 1, 5, 6)  # u, delta, B, C


class _Flags(NamedTuple):
    softplus: bool
    reverse: bool
    average: bool
    log_A: bool


_NUM_FLAGS = len(_Flags._fields)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    reverse: bool = False,
) -> Tensor:
    """Same function as `naive_selective_scan`; float64 goes to the eager loop."""
    if u.dtype == torch.float64:
        return eager.eager_selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    return _scan([(u, delta, A, B, C, D, delta_bias)], z, delta_softplus, reverse, False, False)


def bidirectional_scan(
    forward: tuple, backward: tuple, z: Tensor, average: bool = False, log_A: bool = False
) -> Tensor:
    """Same function as `naive_bidirectional_scan`; float64 goes to the eager loop.

    A direction's ``delta`` may be a pair (features (B, L, R), weight (D, R)), which the kernel then projects, and its
    ``A`` may be log(-A), of which the kernel then takes the exponential.
    """
    if forward[0].dtype == torch.float64:
        forward, backward = (plain_direction(direction, log_A) for direction in (forward, backward))
        return eager.eager_bidirectional_scan(forward, backward, z, average)
    return _scan([forward, backward], z, True, False, average, log_A)


bidirectional_scan.takes_parameters = True  # type: ignore[attr-defined]


def _scan(
    directions: Sequence[tuple], z: Tensor | None, softplus: bool, reverse: bool, average: bool, log_A: bool
) -> Tensor:
    """Bring the tensors to one storage type (fp32 unless all sequences are bf16, or all fp16), and call the kernel."""
    out_dtype = directions[0][0].dtype
    unpacked = []
    for u, delta, A, B, C, D, bias in directions:
        delta, weight = delta if isinstance(delta, tuple) else (delta, None)
        unpacked.append((u, delta, weight, bias, A, B, C, D))
    sequences = [direction[i] for direction in unpacked for i in _SEQUENCES] + ([] if z is None else [z])
    tensors: list[Tensor | None] = [tensor for direction in unpacked for tensor in direction]
    tensors += [None] * (_NUM_TENSORS - 1 - len(tensors))
    tensors.append(z)
    if any(tensor.dtype != out_dtype for tensor in sequences):
        for i in (*_SEQUENCES, *(i + _PER_DIRECTION for i in _SEQUENCES), _NUM_TENSORS - 1):
            tensors[i] = None if tensors[i] is None else tensors[i].float()  # type: ignore[union-attr]
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return _operator(*tensors, softplus, reverse, average, log_A, keep)[0].to(out_dtype)


def num_chunks(programs: int, tiles: int, sms: int) -> int:
    """Into how many parts a sequence is split, so that a small batch fills the GPU too.

    Args:
        programs: warps without a split.
        tiles: of a sequence.
        sms: multiprocessors, each of which is content with 8 warps.

    Returns:
        1 from 4 warps a multiprocessor on. Never more than 2 sqrt(tiles): every chunk folds the states of those
        before it.
    """
    if programs >= 4 * sms:
        return 1
    return max(1, min(8 * sms // programs, round(2 * math.sqrt(tiles)), tiles // 2))


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, keep = arguments
    tensors, flags = _prepared(inputs)
    u, z = tensors[0], tensors[-1]
    batch, length, channels = u.shape
    directions = 1 if tensors[_PER_DIRECTION] is None else 2
    groups, tiles = -(-channels // BLOCK), -(-length // TOKENS)
    out, ungated, states = _forward_fake(*arguments)
    chunks = 1 if keep else num_chunks(groups * batch, tiles, num_sms(u.device))
    chunk = -(-tiles // chunks)
    chunks = -(-tiles // chunk)
    constants = _constants(tensors, flags, FORWARD_TILE)
    strides = _strides(tensors)
    settings = {
        "DIRECTIONS": directions,
        "POLYNOMIAL": POLYNOMIAL,
        "num_warps": 1,
        "maxnreg": FORWARD_REGISTERS,
    }
    first, second = _pointers(tensors)
    ends = steps = out
    with on_device(u):
        if chunks > 1:
            ends = u.new_empty(
                (directions, batch, chunks, groups * BLOCK * constants["N"]), dtype=torch.float32
            )
            steps = u.new_empty((directions, batch, chunks, channels), dtype=torch.float32)
            scan_state_fwd_kernel[(groups, batch, chunks * directions)](
                *first[:6],
                *second[:6],
                ends,
                steps,
                length,
                chunk * TOKENS,
                *strides[:6],
                **constants,
                **settings,
            )
        constants |= {
            "HAS_D": tensors[7] is not None,
            "HAS_Z": z is not None,
            "KEEP": keep,
            "SPLIT": chunks > 1,
        }
        scan_fwd_kernel[(groups, batch, chunks)](
            *first, *second, _given(z, u), out, ungated, states, ends, steps,
            length, chunk * TOKENS, *strides, 0.5 if flags.average else 1.0, **constants, **settings,
        )  # fmt: skip
    return out, ungated, states


def _backward_kernel(dout: Tensor, ungated: Tensor, states: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    tensors, flags = _prepared(inputs)
    u, z = tensors[0], tensors[-1]
    batch, length, channels = u.shape
    du, ddelta, dz, dBC, dA, dvectors = gradients = _backward_fake(dout, ungated, states, *inputs)
    directions, num_states = du.shape[0], dA.shape[-1]
    (dout,) = contiguous_rows(dout)
    groups = -(-channels // BLOCK)
    # Groups that one program takes in turn: fewer partial sums of dB and dC, as long as the GPU stays full.
    span = max(1, min(8, groups * batch * directions // (BACKWARD_WARPS * num_sms(u.device))))
    spans = -(-groups // span)
    first, second = _pointers(tensors)
    partial_BC = dBC.new_empty((directions, spans, batch, length, 2 * num_states))
    partial_A = dA.new_empty((directions, batch, channels, num_states))
    partial_vectors = dvectors.new_empty((directions, batch, 2, channels))
    with on_device(u):
        scan_bwd_kernel[(spans, batch, directions)](
            *first, *second, _given(z, u), dout, ungated, states,
            du, ddelta, dz, partial_BC, partial_A, partial_vectors, length, span,
            *_strides(tensors), dout.stride(0), dout.stride(1), 0.5 if flags.average else 1.0,
            **_constants(tensors, flags, BACKWARD_TILE), HAS_D=tensors[7] is not None, HAS_Z=z is not None, num_warps=1,
        )  # fmt: skip
    torch.sum(partial_BC, 1, out=dBC)
    torch.sum(partial_A, 1, out=dA)
    torch.sum(partial_vectors, 1, out=dvectors)
    return gradients


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, A, second, keep = arguments[0], arguments[4], arguments[_PER_DIRECTION], arguments[-1]
    batch, length, channels = u.shape
    state = -(-channels // BLOCK) * BLOCK * power_of_two(A.shape[1])
    shape = (1 if second is None else 2, batch, -(-length // TOKENS), state)
    dtype = torch.bfloat16 if u.dtype == torch.bfloat16 else torch.float32
    return (
        u.new_empty(u.shape),
        u.new_empty(u.shape if keep else (0,)),
        u.new_empty(shape if keep else (0,), dtype=dtype),
    )


def _backward_fake(dout: Tensor, ungated: Tensor, states: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    u, A, second, z = inputs[0], inputs[4], inputs[_PER_DIRECTION], inputs[_NUM_TENSORS - 1]
    batch, length, channels = u.shape
    directions, num_states = 1 if second is None else 2, A.shape[1]
    return (
        u.new_empty((directions, *u.shape)),
        u.new_empty((directions, *u.shape)),
        u.new_empty(u.shape if z is not None else (0,)),
        u.new_empty((directions, batch, length, 2 * num_states), dtype=torch.float32),
        u.new_empty((directions, channels, num_states), dtype=torch.float32),
        u.new_empty((directions, 2, channels), dtype=torch.float32),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, ungated, states = output
    ctx.mark_non_differentiable(ungated, states)
    ctx.flags = inputs[_NUM_TENSORS:-1]
    ctx.save_for_backward(ungated, states, *inputs[:_NUM_TENSORS])


def _backward(ctx: Any, dout: Tensor, *_: Any) -> tuple:
    ungated, states, *tensors = ctx.saved_tensors
    z = tensors[-1]
    du, ddelta, dz, dBC, dA, dvectors = _backward_operator(dout, ungated, states, *tensors, *ctx.flags)
    gradients: list[Tensor | None] = []
    for k in range(2):
        u, delta, weight, bias, A, B, C, D = tensors[k * _PER_DIRECTION : (k + 1) * _PER_DIRECTION]
        if u is None:
            gradients += [None] * _PER_DIRECTION
            continue
        ddirection, dweight = ddelta[k], None
        if weight is not None:
            flat = ddirection.flatten(0, 1)
            dweight = (flat.T @ delta.flatten(0, 1)).to(weight.dtype)
            ddirection = (flat @ weight.to(flat.dtype)).view_as(delta)
        dB, dC = dBC[k].to(B.dtype).chunk(2, dim=-1)
        dbias = None if bias is None else dvectors[k, 1].to(bias.dtype)
        dD = None if D is None else dvectors[k, 0].to(D.dtype)
        gradients += [du[k], ddirection, dweight, dbias, dA[k].to(A.dtype), dB, dC, dD]
    return (*gradients, None if z is None else dz, *[None] * (_NUM_FLAGS + 1))


def _prepared(inputs: Sequence[Any]) -> tuple[list[Any], _Flags]:
    """The tensors as the kernels take them: last dimension contiguous, the same strides in both directions."""
    tensors, flags = list(inputs[:_NUM_TENSORS]), inputs[_NUM_TENSORS : _NUM_TENSORS + _NUM_FLAGS]
    for i in range(_PER_DIRECTION):
        for k in (i, i + _PER_DIRECTION):
            if i not in _SEQUENCES and tensors[k] is not None:
                tensors[k] = tensors[k].contiguous()
    for i in _SEQUENCES:
        if tensors[i + _PER_DIRECTION] is None:
            (tensors[i],) = contiguous_rows(tensors[i])
        else:
            tensors[i], tensors[i + _PER_DIRECTION] = contiguous_rows(tensors[i], tensors[i + _PER_DIRECTION])
    if tensors[-1] is not None:
        (tensors[-1],) = contiguous_rows(tensors[-1])
    return tensors, _Flags(*flags)


def _given(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """A kernel argument that is not read, for one that is not there."""
    return instead if tensor is None else tensor


def _pointers(tensors: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    first, second = tensors[:_PER_DIRECTION], tensors[_PER_DIRECTION : 2 * _PER_DIRECTION]
    one = [_given(tensor, tensors[0]) for tensor in first]
    return one, [_given(tensor, instead) for tensor, instead in zip(second, one)]


def _strides(tensors: Sequence[Any]) -> list[int]:
    u, delta, _, _, _, B, C, _ = tensors[:_PER_DIRECTION]
    return [stride for t in (u, delta, B, C, _given(tensors[-1], u)) for stride in t.stride()[:2]]


def _constants(tensors: Sequence[Any], flags: _Flags, tile: tuple[int, int]) -> dict[str, Any]:
    u, _, weight, bias, A, *_ = tensors
    rank = 0 if weight is None else weight.shape[1]
    return {
        "CHANNELS": u.shape[2],
        "STATES": A.shape[1],
        "RANK": rank,
        "REVERSE": int(flags.reverse),
        "SOFTPLUS": flags.softplus,
        "LOG_A": flags.log_A,
        "HAS_BIAS": bias is not None,
        "T": TOKENS,
        "G": tile[0],
        "N": power_of_two(A.shape[1]),
        "W": tile[1],
        "R": power_of_two(rank, 16),
    }


_operator = operator(
    "triton_scan",
    f"({_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    _setup_context,
    _backward,
    dispatch_keys(),
)
_backward_operator = operator(
    "triton_scan_backward",
    f"(Tensor dout, Tensor ungated, Tensor states, {_INPUTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
    keys=dispatch_keys(),
)
