"""The selective scan on the C++ kernel, registered with torch.library as ``rmeeto::scan``.

Shapes: B batch, L tokens, D channels, N states. u, delta, z (B, L, D); A (D, N); B, C (B, L, N); D, delta_bias (D,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rmeeto.ops import build
from rmeeto.ops.register import operator
from rmeeto.ops.selective_scan import eager

# Fixed in csrc/scan.cpp: tokens between two stored states, and what a stored state is padded to.
CHUNK, PAD_CHANNELS, PAD_STATES = 16, 16, 8

_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? bias, "
    "Tensor? u2, Tensor? delta2, Tensor? A2, Tensor? B2, Tensor? C2, Tensor? D2, Tensor? bias2, Tensor? z, "
    "bool softplus, bool reverse, bool average"
)
_PER_DIRECTION, _NUM_TENSORS = 7, 15
_DIRECTION_FIELDS = 26  # of struct Direction


def load() -> tuple[Callable, Callable]:
    """`selective_scan` and `bidirectional_scan` for token-major tensors on the CPU.

    Raises:
        BackendUnavailable: the kernel cannot be built here.
    """
    build.library()
    return selective_scan, bidirectional_scan


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
    """Same function as `naive_selective_scan`; float64 and empty tensors go to the eager loop."""
    if u.dtype == torch.float64 or u.numel() == 0:
        return eager.eager_selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    return _scan([(u, delta, A, B, C, D, delta_bias)], z, delta_softplus, reverse, False)


def bidirectional_scan(forward: tuple, backward: tuple, z: Tensor, average: bool = False) -> Tensor:
    """Same function as `naive_bidirectional_scan`; float64 and empty tensors go to the eager loop."""
    if z.dtype == torch.float64 or z.numel() == 0:
        return eager.eager_bidirectional_scan(forward, backward, z, average)
    return _scan([forward, backward], z, True, False, average)


def _scan(
    directions: Sequence[tuple], z: Tensor | None, softplus: bool, reverse: bool, average: bool
) -> Tensor:
    """Bring the tensors to the types of the kernel and call it: bf16 if all sequences are, else fp32."""
    out_dtype = directions[0][0].dtype
    sequences = [z, *(tensor for u, delta, _, B, C, *_ in directions for tensor in (u, delta, B, C))]
    half = all(tensor is None or tensor.dtype == torch.bfloat16 for tensor in sequences)
    storage = torch.bfloat16 if half else torch.float32
    tensors: list[Tensor | None] = []
    for u, delta, A, B, C, D, bias in directions:
        tensors += [u.to(storage), delta.to(storage), A.float(), B.to(storage), C.to(storage)]
        tensors += [None if D is None else D.float(), None if bias is None else bias.float()]
    tensors += [None] * (_NUM_TENSORS - 1 - len(tensors))
    tensors.append(None if z is None else z.to(storage))
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    out, _ = _scan_operator(*tensors, softplus, reverse, average, keep)
    return out.to(out_dtype)


def _forward_cpu(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, keep = arguments
    tensors, flags = _split(inputs)
    out = torch.empty(tensors[0].shape, dtype=tensors[0].dtype)
    states = torch.empty(_states_shape(tensors) if keep else (0,), dtype=torch.float32)
    _call("forward", tensors, flags, out=out, states=states)
    return out, states


def _backward_cpu(dout: Tensor, states: Tensor, *inputs: Any) -> list[Tensor]:
    tensors, flags = _split(inputs)
    dout = dout.to(tensors[0].dtype)
    gradients = [None if t is None else torch.empty(t.shape, dtype=t.dtype) for t in tensors]
    _call("backward", tensors, flags, states=states, dout=_row(dout), gradients=gradients)
    return [gradient for gradient in gradients if gradient is not None]


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    tensors, keep = arguments[:_NUM_TENSORS], arguments[-1]
    u = tensors[0]
    shape = _states_shape(tensors) if keep else (0,)
    return torch.empty(u.shape, dtype=u.dtype, device=u.device), u.new_empty(shape, dtype=torch.float32)


def _backward_fake(dout: Tensor, states: Tensor, *inputs: Any) -> list[Tensor]:
    return [
        torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in inputs[:_NUM_TENSORS] if t is not None
    ]


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    states = output[1]
    ctx.mark_non_differentiable(states)
    ctx.flags = inputs[_NUM_TENSORS:-1]
    ctx.save_for_backward(states, *inputs[:_NUM_TENSORS])


def _backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple:
    states, *tensors = ctx.saved_tensors
    computed = iter(_scan_backward_operator(dout, states, *tensors, *ctx.flags))
    gradients = [None if tensor is None else next(computed) for tensor in tensors]
    return (*gradients, None, None, None, None)


def _row(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _whole(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _split(inputs: Sequence[Any]) -> tuple[list[Any], Sequence[bool]]:
    """Tensors as the kernel takes them (rows of u, delta, z in one piece; A, D, bias contiguous), and flags."""
    tensors: list[Any] = []
    for u, delta, A, B, C, D, bias in (inputs[:_PER_DIRECTION], inputs[_PER_DIRECTION : 2 * _PER_DIRECTION]):
        tensors += [_row(u), _row(delta), _whole(A), B, C, _whole(D), _whole(bias)]
    return [*tensors, _row(inputs[_NUM_TENSORS - 1])], inputs[_NUM_TENSORS : _NUM_TENSORS + 3]


def _states_shape(tensors: Sequence[Any]) -> tuple[int, ...]:
    u, A = tensors[0], tensors[2]
    batch, length, channels = u.shape
    chunks = -(-length // CHUNK)
    padded = -(-channels // PAD_CHANNELS) * PAD_CHANNELS * (-(-A.shape[1] // PAD_STATES) * PAD_STATES)
    return (1 if tensors[_PER_DIRECTION] is None else 2, batch, chunks, padded)


def _call(
    name: str,
    tensors: Sequence[Any],
    flags: Sequence[bool],
    states: Tensor,
    out: Tensor | None = None,
    dout: Tensor | None = None,
    gradients: Sequence[Any] = (None,) * _NUM_TENSORS,
) -> None:
    """Pack struct Scan of csrc/scan.cpp and run the kernel."""
    softplus, reverse, average = flags
    u, z = tensors[0], tensors[-1]
    batch, length, channels = u.shape
    two = tensors[_PER_DIRECTION] is not None
    fields = [1 + two, batch, length, channels, tensors[2].shape[1], softplus, average]
    fields += [build.pointer(z), *_strides(z), build.pointer(out), build.pointer(dout), *_strides(dout)]
    fields.append(build.pointer(gradients[-1]))
    for k in range(1 + two):
        here = slice(k * _PER_DIRECTION, (k + 1) * _PER_DIRECTION)
        u, delta, A, B, C, D, bias = tensors[here]
        du, ddelta, dA, dB, dC, dD, dbias = gradients[here]
        kept = states.data_ptr() + k * states.stride(0) * 4 if states.numel() else 0
        fields += [build.pointer(tensor) for tensor in (u, delta, B, C, A, D, bias)]
        fields += [*_strides(u), *_strides(delta), *B.stride(), *C.stride(), reverse or k == 1, kept]
        fields += [build.pointer(tensor) for tensor in (du, ddelta, dB, dC, dA, dD, dbias)]
    fields += [0] * (_DIRECTION_FIELDS * (1 - two))
    build.call(f"rmeeto_scan_{name}{build.suffix(u.dtype)}", fields)


def _strides(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0) if tensor is None else tensor.stride()[:2]


_scan_operator = operator(
    "scan",
    f"({_INPUTS}, bool keep) -> (Tensor, Tensor)",
    _forward_cpu,
    _forward_fake,
    _setup_context,
    _backward,
)
_scan_backward_operator = operator(
    "scan_backward", f"(Tensor dout, Tensor states, {_INPUTS}) -> Tensor[]", _backward_cpu, _backward_fake
)
