"""The selective scan on the Triton kernels, registered with torch.library as ``rmeeto::triton_scan``.

Shapes: as in `Direction`; z (B, L, D). The kernels project the step size and take the exponential of A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmeeto.ops.register import operator
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
from rmeeto.ops.selective_scan.triton_backward import scan_bwd_kernel
from rmeeto.ops.selective_scan.triton_forward import scan_fwd_kernel, scan_state_fwd_kernel
from rmeeto.ops.triton_support import (
    check_batch,
    contiguous_rows,
    dispatch_keys,
    num_sms,
    on_device,
    power_of_two,
)

# A tile is TOKENS x G x N x W, scanned by one warp. TOKENS is also how far apart states are stored. (1, 16) compiles to
# fewer instructions forward, but spills in some settings: for a GPU to decide, see benchmarks/operators.py.
TOKENS, BLOCK = 8, 16
FORWARD_TILE, BACKWARD_TILE = (2, 8), (2, 8)  # G, W; their product is BLOCK
# Registers of a forward thread: 12 warps then fit a multiprocessor. The backward kernel needs all 255.
FORWARD_REGISTERS = 168
BACKWARD_WARPS = 16  # a multiprocessor gets before one of them takes several groups of channels
# Every POLYNOMIAL-th exponential by FMA instead of the special function unit. 0 for none: by the compiled kernel's
# instruction count the issue slots are as busy as that unit, so a polynomial takes from where nothing is free.
POLYNOMIAL = 0

# The kernels' names for the tensors of a Direction, in its order.
_NAMES = [[f"{name}{k}" for name in ("u", "delta", "A", "B", "C", "D", "bias", "weight")] for k in (0, 1)]
_INPUTS = f"{SCHEMA}, bool log_A"


class _Flags(NamedTuple):
    softplus: bool
    reverse: bool
    average: bool
    log_A: bool


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
    return _scan([forward, backward], z, True, False, average)


def _scan(
    directions: Sequence[Direction], z: Tensor | None, softplus: bool, reverse: bool, average: bool
) -> Tensor:
    """Bring the tensors to one storage type (fp32 unless all sequences are bf16, or all fp16), and call the kernel."""
    out_dtype = directions[0].u.dtype
    sequences = [z, *(tensor for d in directions for tensor in (d.u, d.delta, d.B, d.C))]
    if any(tensor is not None and tensor.dtype != out_dtype for tensor in sequences):
        z = None if z is None else z.float()
        directions = [
            d._replace(u=d.u.float(), delta=d.delta.float(), B=d.B.float(), C=d.C.float()) for d in directions
        ]
    tensors = flatten(directions, z)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    flags = _Flags(softplus, reverse, average, directions[0].log_A)
    return _operator(*tensors, *flags, keep)[0].to(out_dtype)


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
    directions, z, flags = _prepared(inputs)
    first, num_directions = directions[0], len(directions)
    u = first.u
    check_batch(u)
    batch, length, channels = u.shape
    groups, tiles = -(-channels // BLOCK), -(-length // TOKENS)
    out, ungated, states = _forward_fake(*arguments)
    chunks = 1 if keep else num_chunks(groups * batch, tiles, num_sms(u.device))
    chunk = -(-tiles // chunks)
    chunks = -(-tiles // chunk)
    settings = {"num_warps": 1, "maxnreg": FORWARD_REGISTERS}
    constants = _constants(first, flags, FORWARD_TILE) | {
        "DIRECTIONS": num_directions,
        "POLYNOMIAL": POLYNOMIAL,
    }
    tensors, gate = _tensors(directions), u if z is None else z
    ends = steps = out
    with on_device(u):
        if chunks > 1:
            size = groups * BLOCK * constants["N"]
            ends = u.new_empty((num_directions, batch, chunks, size), dtype=torch.float32)
            steps = u.new_empty((num_directions, batch, chunks, channels), dtype=torch.float32)
            scan_state_fwd_kernel[(groups, batch, chunks * num_directions)](
                **{name: tensor for name, tensor in tensors.items() if name not in ("C0", "D0", "C1", "D1")},
                ends=ends, steps=steps, length=length, chunk=chunk * TOKENS,
                **_strides(u=u, delta=first.delta, B=first.B), **constants, **settings,
            )  # fmt: skip
        scan_fwd_kernel[(groups, batch, chunks)](
            **tensors, z=gate, out=out, ungated=ungated, states=states, ends=ends, steps=steps,
            length=length, chunk=chunk * TOKENS, **_strides(u=u, delta=first.delta, B=first.B, C=first.C, z=gate),
            scale=0.5 if flags.average else 1.0, **constants,
            HAS_D=first.D is not None, HAS_Z=z is not None, KEEP=keep, SPLIT=chunks > 1, **settings,
        )  # fmt: skip
    return out, ungated, states


def _backward_kernel(dout: Tensor, ungated: Tensor, states: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    directions, z, flags = _prepared(inputs)
    first = directions[0]
    u, gate = first.u, first.u if z is None else z
    batch, length, channels = u.shape
    du, ddelta, dz, dBC, dA, dvectors = gradients = _backward_fake(dout, ungated, states, *inputs)
    num_directions, num_states = du.shape[0], dA.shape[-1]
    (dout,) = contiguous_rows(dout)
    groups = -(-channels // BLOCK)
    # Groups that one program takes in turn: fewer partial sums of dB and dC, as long as the GPU stays full.
    span = max(1, min(8, groups * batch * num_directions // (BACKWARD_WARPS * num_sms(u.device))))
    spans = -(-groups // span)
    partial_BC = dBC.new_empty((num_directions, spans, batch, length, 2 * num_states))
    partial_A = dA.new_empty((num_directions, batch, channels, num_states))
    partial_vectors = dvectors.new_empty((num_directions, batch, 2, channels))
    with on_device(u):
        scan_bwd_kernel[(spans, batch, num_directions)](
            **_tensors(directions), z=gate, dout=dout, ungated=ungated, states=states,
            du=du, ddelta=ddelta, dz=dz, dBC=partial_BC, dA=partial_A, dvectors=partial_vectors,
            length=length, span=span, **_strides(u=u, delta=first.delta, B=first.B, C=first.C, z=gate, dout=dout),
            scale=0.5 if flags.average else 1.0, **_constants(first, flags, BACKWARD_TILE),
            HAS_D=first.D is not None, HAS_Z=z is not None, num_warps=1,
        )  # fmt: skip
    torch.sum(partial_BC, 1, out=dBC)
    torch.sum(partial_A, 1, out=dA)
    torch.sum(partial_vectors, 1, out=dvectors)
    return gradients


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, A, second, keep = arguments[0], arguments[2], arguments[PER_DIRECTION], arguments[-1]
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
    u, A, second, z = inputs[0], inputs[2], inputs[PER_DIRECTION], inputs[NUM_TENSORS - 1]
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
    ctx.flags = inputs[NUM_TENSORS:-1]
    ctx.save_for_backward(ungated, states, *inputs[:NUM_TENSORS])


def _backward(ctx: Any, dout: Tensor, *_: Any) -> tuple:
    ungated, states, *tensors = ctx.saved_tensors
    directions, z = unflatten(tensors)
    du, ddelta, dz, dBC, dA, dvectors = _backward_operator(dout, ungated, states, *tensors, *ctx.flags)
    gradients = []
    for k, d in enumerate(directions):
        ddirection, dweight = ddelta[k], None
        if d.dt_weight is not None:
            flat = ddirection.flatten(0, 1)
            dweight = (flat.T @ d.delta.flatten(0, 1)).to(d.dt_weight.dtype)
            ddirection = (flat @ d.dt_weight.to(flat.dtype)).view_as(d.delta)
        dB, dC = dBC[k].to(d.B.dtype).chunk(2, dim=-1)
        dD = None if d.D is None else dvectors[k, 0].to(d.D.dtype)
        dbias = None if d.delta_bias is None else dvectors[k, 1].to(d.delta_bias.dtype)
        gradients.append(Direction(du[k], ddirection, dA[k].to(d.A.dtype), dB, dC, dD, dbias, dweight))
    return (*flatten(gradients, None if z is None else dz), *[None] * (len(ctx.flags) + 1))


def _prepared(inputs: Sequence[Any]) -> tuple[list[Direction], Tensor | None, _Flags]:
    """What the kernels take: last dimensions contiguous, the same strides in both directions."""
    directions, z = unflatten(inputs[:NUM_TENSORS])
    sequences = [contiguous_rows(*alike) for alike in zip(*((d.u, d.delta, d.B, d.C) for d in directions))]
    prepared = []
    for d, u, delta, B, C in zip(directions, *sequences, strict=True):
        A, *vectors, weight = (
            None if tensor is None else tensor.contiguous()
            for tensor in (d.A, d.D, d.delta_bias, d.dt_weight)
        )
        prepared.append(Direction(u, delta, A, B, C, *vectors, weight))  # type: ignore[arg-type]
    return prepared, None if z is None else contiguous_rows(z)[0], _Flags(*inputs[NUM_TENSORS:])


def _tensors(directions: Sequence[Direction]) -> dict[str, Tensor]:
    """The kernels' arguments u0, ..., u1, ...; for one that is not there, and so not read, any other."""
    given = dict(zip(_NAMES[0], directions[0])) | dict(zip(_NAMES[1], directions[-1]))
    return {name: directions[0].u if tensor is None else tensor for name, tensor in given.items()}


def _strides(**tensors: Tensor) -> dict[str, int]:
    """How far apart samples and tokens lie, in elements, of tensors whose channels lie side by side."""
    return {
        f"{name}_{dim}": stride
        for name, tensor in tensors.items()
        for dim, stride in zip(("batch", "row"), tensor.stride())
    }


def _constants(direction: Direction, flags: _Flags, tile: tuple[int, int]) -> dict[str, Any]:
    rank = 0 if direction.dt_weight is None else direction.dt_weight.shape[1]
    num_states = direction.A.shape[1]
    return {
        "CHANNELS": direction.u.shape[2],
        "STATES": num_states,
        "RANK": rank,
        "REVERSE": int(flags.reverse),
        "SOFTPLUS": flags.softplus,
        "LOG_A": flags.log_A,
        "HAS_BIAS": direction.delta_bias is not None,
        "T": TOKENS,
        "G": tile[0],
        "N": power_of_two(num_states),
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
