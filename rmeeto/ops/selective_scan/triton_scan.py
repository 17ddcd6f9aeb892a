"""The selective scan on the Triton kernels, registered with torch.library as ``rmeeto::triton_scan``.

Shapes: as in `Direction`; z (B, L, D). The kernels project the step size and take the exponential of A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
from rmeeto.ops.selective_scan.triton_backward import scan_bwd_kernel
from rmeeto.ops.selective_scan.triton_forward import UNIT, scan_fwd_kernel, scan_state_kernel
from rmeeto.ops.triton_support import (
    FUSED,
    check_batch,
    contiguous_rows,
    dispatch_keys,
    num_sms,
    on_device,
    power_of_two,
)


class Tile(NamedTuple):
    """What a warp scans at a time: tokens x groups x states x width."""

    T: int
    G: int
    W: int

    @property
    def channels(self) -> int:
        return self.G * self.W


# Chosen by counts of the compiled kernels' instructions (benchmarks/README.md); benchmarks/operators.py times others.
FORWARD_TILE, BACKWARD_TILE = Tile(8, 2, 8), Tile(8, 2, 8)
STORED, STORED_LONG, LONG = (
    8,
    64,
    512,
)  # tokens from one stored state to the next, the latter from LONG tokens on
WARPS = 8  # of all 255 registers that fit a multiprocessor: so many share out a sequence
FORWARD_REGISTERS = 168
FORWARD_STAGES, BACKWARD_STAGES = 1, 1  # of the compiler's pipeline
AHEAD = False  # whether a backward tile is loaded while the one before it is worked on
# Every POLYNOMIAL-th exponential by FMA instead of the special function unit. 0 for none: by the compiled kernel's
# instruction count the issue slots are as busy as that unit, so a polynomial takes from where nothing is free.
POLYNOMIAL = 0

# The kernels' names for the tensors of a Direction, in its order.
_NAMES = [[f"{name}{k}" for name in ("u", "delta", "A", "B", "C", "D", "bias", "weight")] for k in (0, 1)]
_INPUTS = f"{SCHEMA}, bool log_A"


class Flags(NamedTuple):
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


def _scan(directions: Sequence[Direction], z: Tensor | None, softplus: bool, reverse: bool, average: bool) -> Tensor:
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
    flags = Flags(softplus, reverse, average, directions[0].log_A)
    return scan(*tensors, *flags, keep)[0].to(out_dtype)


def stored_every(length: int) -> int:
    """Tokens from one state that is kept for the backward pass to the next; those between are scanned again."""
    return STORED if length < LONG else STORED_LONG


def num_chunks(programs: int, pieces: int, warps: int) -> int:
    """Into how many parts a sequence is split, so that a small batch fills the GPU too.

    Args:
        programs: warps without a split.
        pieces: of a sequence, that are not split.
        warps: that the GPU is content with.

    Returns:
        1 from half of these warps on. Never more than 2 sqrt(pieces): every chunk folds the states of those before it.
    """
    if 2 * programs >= warps:
        return 1
    return max(1, min(warps // programs, round(2 * math.sqrt(pieces)), pieces // 2))


def span_of(groups: int, programs: int, places: int) -> int:
    """Groups of channels that a backward program takes in turn: those that leave the fewest places empty.

    Args:
        groups: of channels.
        programs: for each span.
        places: for programs on the GPU.

    Returns:
        1 to 8; of equals the largest, which leaves the fewest partial sums of dB and dC.
    """

    def rounds(span: int) -> int:
        return -(-(-(-groups // span) * programs) // places) * span

    return min(range(min(8, groups), 0, -1), key=rounds)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, keep = arguments
    directions, z, flags = _prepared(inputs)
    first, num_directions = directions[0], len(directions)
    u, tile = first.u, FORWARD_TILE
    check_batch(u)
    batch, length, channels = u.shape
    groups, every = -(-channels // tile.channels), stored_every(length) if keep else tile.T
    out, ungated, states = _forward_fake(*arguments)
    chunk, chunks = _chunks(groups * batch, length, every, WARPS, u.device)
    constants = _constants(directions, flags, tile)
    tensors, gate = _tensors(directions), u if z is None else z
    ends = steps = out
    with on_device(u):
        if chunks > 1:
            ends, steps = _chunk_states(
                tensors, u, gate, first, constants, chunk, chunks,
                DIRECTIONS=num_directions, HAS_Z=z is not None, ADJOINT=False,
            )  # fmt: skip
        scan_fwd_kernel[(groups, batch, chunks)](
            **tensors, z=gate, out=out, ungated=ungated, states=states, ends=ends, steps=steps,
            length=length, chunk=chunk // tile.T,
            **_strides(u=u, delta=first.delta, B=first.B, C=first.C, z=gate),
            scale=0.5 if flags.average else 1.0, **constants, DIRECTIONS=num_directions, POLYNOMIAL=POLYNOMIAL,
            HAS_D=first.D is not None, HAS_Z=z is not None, KEEP=keep, SPLIT=chunks > 1, EVERY=every // tile.T,
            STAGES=FORWARD_STAGES, num_warps=1, maxnreg=_registers(u, constants), **FUSED,
        )  # fmt: skip
    return out, ungated, states


def _registers(u: Tensor, constants: dict[str, Any]) -> int:
    """Of a thread: all where the weight of more than 32 features in fp32 would not fit, and its loop spill."""
    return 255 if u.dtype == torch.float32 and constants["R"] > 32 else FORWARD_REGISTERS


def _chunks(programs: int, length: int, every: int, warps: int, device: torch.device) -> tuple[int, int]:
    """Tokens of a chunk, a multiple of ``every``, and chunks."""
    pieces = -(-length // every)
    chunk = -(-pieces // num_chunks(programs, pieces, warps * num_sms(device)))
    return chunk * every, -(-pieces // chunk)


def _chunk_states(
    tensors: dict[str, Tensor],
    source: Tensor,
    gate: Tensor,
    first: Direction,
    constants: dict[str, Any],
    chunk: int,
    chunks: int,
    **flags: Any,
) -> tuple[Tensor, Tensor]:
    """What `scan_state_kernel` writes; ``source``: the input of the scan, or of its adjoint."""
    batch, length, channels = first.u.shape
    place, tile = (flags["DIRECTIONS"], batch, chunks), FORWARD_TILE
    ends = source.new_empty((*place, _state_size(channels, constants["N"])), dtype=torch.float32)
    steps = source.new_empty((*place, channels), dtype=torch.float32)
    given = {name: tensor for name, tensor in tensors.items() if name[:-1] != "D"}
    given |= {"u0": source, "u1": source} if flags["ADJOINT"] else {}
    scan_state_kernel[(-(-channels // tile.channels), batch, chunks * flags["DIRECTIONS"])](
        **given, z=gate, ends=ends, steps=steps, length=length, chunk=chunk // tile.T,
        **_strides(u=source, delta=first.delta, B=first.B, C=first.C, z=gate), **constants, **flags,
        POLYNOMIAL=POLYNOMIAL, STAGES=FORWARD_STAGES, num_warps=1, maxnreg=_registers(first.u, constants), **FUSED,
    )  # fmt: skip
    return ends, steps


def run_backward(
    dout: Tensor, ungated: Tensor, states: Tensor, *inputs: Any, dz: Tensor | None = None
) -> tuple[Tensor, ...]:
    """du, ddelta, dz (the one that is given, if one is), dBC and dparameters of `scan_bwd_kernel`, summed."""
    directions, z, flags = _prepared(inputs)
    first, tile = directions[0], BACKWARD_TILE
    u, gate = first.u, first.u if z is None else z
    batch, length, channels = u.shape
    du, ddelta, made, dBC, dparameters = _backward_fake(dout, ungated, states, *inputs)
    dz = made if dz is None else dz
    del made
    num_directions, num_states = du.shape[0], first.A.shape[1]
    (dout,) = contiguous_rows(dout)
    groups, every = -(-channels // tile.channels), stored_every(length)
    sms = num_sms(u.device)
    chunk, chunks = _chunks(groups * batch * num_directions, length, every, WARPS, u.device)
    span = span_of(groups, batch * num_directions * chunks, WARPS * sms)
    spans = -(-groups // span)
    partial_BC = dBC.new_empty((num_directions, spans, batch, length, 2 * num_states))
    partial = dparameters.new_empty((num_directions, batch * chunks, dparameters.shape[1]))
    constants = _constants(directions, flags, tile)
    again = every // tile.T
    scratch = partial
    if again > 1:
        size = (spans * batch * num_directions * chunks, again, tile.channels * constants["N"])
        scratch = partial.new_empty(size)
    tensors = _tensors(directions)
    ends = steps = partial
    with on_device(u):
        if chunks > 1:
            ends, steps = _chunk_states(
                tensors, dout, gate, first, _constants(directions, flags, FORWARD_TILE), chunk, chunks,
                DIRECTIONS=num_directions, HAS_Z=z is not None, ADJOINT=True,
            )  # fmt: skip
        scan_bwd_kernel[(spans, batch, chunks * num_directions)](
            **tensors, z=gate, dout=dout, ungated=ungated, states=states, ends=ends, steps=steps, scratch=scratch,
            du=du, ddelta=ddelta, dz=dz, dBC=partial_BC, dparameters=partial,
            length=length, span=span, chunk=chunk // tile.T, num_chunks=chunks,
            **_strides(u=u, delta=first.delta, B=first.B, C=first.C, z=gate, dout=dout, dz=dz if z is not None else u),
            scale=0.5 if flags.average else 1.0, **constants, HAS_D=first.D is not None, HAS_Z=z is not None,
            SPLIT=chunks > 1, EVERY=again, AHEAD=AHEAD, STAGES=BACKWARD_STAGES, num_warps=1,
            **FUSED,
        )  # fmt: skip
    torch.sum(partial_BC, 1, out=dBC)
    torch.sum(partial, 1, out=dparameters)
    return du, ddelta, dz, dBC, dparameters


def _state_size(channels: int, states: int) -> int:
    return -(-channels // UNIT.value) * UNIT.value * states


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, A, second, keep = arguments[0], arguments[2], arguments[PER_DIRECTION], arguments[-1]
    batch, length, channels = u.shape
    stored = -(-length // stored_every(length))
    shape = (1 if second is None else 2, batch, stored, _state_size(channels, power_of_two(A.shape[1])))
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
        u.new_empty((directions, channels * (num_states + 2)), dtype=torch.float32),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, ungated, states = output
    ctx.mark_non_differentiable(ungated, states)
    ctx.set_materialize_grads(False)  # of these two, which would be filled with zeros
    ctx.flags = inputs[NUM_TENSORS:-1]
    ctx.save_for_backward(ungated, states, *inputs[:NUM_TENSORS])


def _backward(ctx: Any, dout: Tensor, *_: Any) -> tuple:
    ungated, states, *tensors = ctx.saved_tensors
    directions, z = unflatten(tensors)
    du, ddelta, dz, dBC, dparameters = _backward_operator(dout, ungated, states, *tensors, *ctx.flags)
    gradients = []
    for k, d in enumerate(directions):
        ddirection, dweight = ddelta[k], None
        if d.dt_weight is not None:
            flat = ddirection.flatten(0, 1)
            dweight = (flat.T @ d.delta.flatten(0, 1)).to(d.dt_weight.dtype)
            ddirection = (flat @ d.dt_weight.to(flat.dtype)).view_as(d.delta)
        dB, dC = dBC[k].to(d.B.dtype).chunk(2, dim=-1)
        dA, dD, dbias = parameter_gradients(dparameters[k], d)
        gradients.append(Direction(du[k], ddirection, dA, dB, dC, dD, dbias, dweight))
    return (*flatten(gradients, None if z is None else dz), *[None] * (len(ctx.flags) + 1))


def parameter_gradients(dparameters: Tensor, d: Direction) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Those of A, D and the bias, in their types."""
    channels = d.A.shape[0]
    dA, dD, dbias = dparameters.split([d.A.numel(), channels, channels])
    vectors = (None if v is None else g.to(v.dtype) for g, v in ((dD, d.D), (dbias, d.delta_bias)))
    return dA.view(d.A.shape).to(d.A.dtype), *vectors


def _prepared(inputs: Sequence[Any]) -> tuple[list[Direction], Tensor | None, Flags]:
    """What the kernels take: last dimensions contiguous, the same strides in both directions."""
    directions, z = unflatten(inputs[:NUM_TENSORS])
    sequences = [contiguous_rows(*alike) for alike in zip(*((d.u, d.delta, d.B, d.C) for d in directions))]
    prepared = []
    for d, u, delta, B, C in zip(directions, *sequences, strict=True):
        A, *vectors, weight = (
            None if tensor is None else tensor.contiguous() for tensor in (d.A, d.D, d.delta_bias, d.dt_weight)
        )
        prepared.append(Direction(u, delta, A, B, C, *vectors, weight))  # type: ignore[arg-type]
    return prepared, None if z is None else contiguous_rows(z)[0], Flags(*inputs[NUM_TENSORS:])


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


def _constants(directions: Sequence[Direction], flags: Flags, tile: Tile) -> dict[str, Any]:
    direction = directions[0]
    rank = 0 if direction.dt_weight is None else direction.dt_weight.shape[1]
    num_states = direction.A.shape[1]
    channels = direction.u.shape[2]
    return {
        "CHANNELS": channels,
        "STATES": num_states,
        "RANK": rank,
        "REVERSE": int(flags.reverse),
        "SOFTPLUS": flags.softplus,
        "LOG_A": flags.log_A,
        "HAS_BIAS": direction.delta_bias is not None,
        "N": power_of_two(num_states),
        "R": power_of_two(rank, 16),
        "EVEN": channels % tile.channels == 0,
        "PACKED": rank + 2 * num_states if all(_is_packed(d, rank) for d in directions) else 0,
        **tile._asdict(),
    }


def _is_packed(d: Direction, rank: int) -> bool:
    """Whether the features, B and C are slices of contiguous rows, as x_proj's output gives them."""
    length, states = d.u.shape[1], d.A.shape[1]
    row, size, start = rank + 2 * states, d.B.element_size(), d.delta.data_ptr()
    there = d.B.data_ptr() == start + rank * size and d.C.data_ptr() == start + (rank + states) * size
    alike = all(t.stride() == (length * row, row, 1) for t in (d.delta, d.B, d.C))
    return rank > 0 and there and alike and start % 16 == 0


scan = operator(
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
    f"(Tensor dout, Tensor ungated, Tensor states, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    run_backward,
    _backward_fake,
    keys=dispatch_keys(),
)
