"""The selective scan as a tidy eager loop: any device, autograd by torch, no (B, D, L, N) temporaries.

Shapes: B batch, L tokens, D channels, N states. u, delta, z (B, L, D); A (D, N); B, C (B, L, N); D, delta_bias (D,).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rmeeto.autocast import full_precision
from rmeeto.ops.selective_scan.direction import Direction, of_tensors


@of_tensors
def eager_selective_scan(d: Direction, z: Tensor | None, softplus: bool, reverse: bool) -> Tensor:
    """Same function as `naive_selective_scan`."""
    with full_precision(d.u.device):
        y = _scan(d, softplus, reverse)
        if d.D is not None:
            y = torch.addcmul(y, d.u.to(y.dtype), d.D.to(y.dtype))
        if z is not None:
            y = y * F.silu(z.to(y.dtype))
    return y.to(d.u.dtype)


def _scan(d: Direction, softplus: bool, reverse: bool) -> Tensor:
    dtype = torch.promote_types(d.u.dtype, torch.float32)
    u, delta, A, B, C = (tensor.to(dtype) for tensor in (d.u, d.delta, d.A, d.B, d.C))
    if d.delta_bias is not None:
        delta = delta + d.delta_bias.to(dtype)
    if softplus:
        delta = F.softplus(delta)
    if torch.compiler.is_exporting():
        return _scan_operator(u, delta, A, B, C, reverse)
    # unbind, not indexing: the backward of one unbind is one stack, that of L selects is L full-size tensors.
    steps = list(
        zip(delta.unsqueeze(-1).unbind(1), (delta * u).unsqueeze(-1).unbind(1), B.unsqueeze(2).unbind(1),
            C.unsqueeze(-1).unbind(1), strict=True)
    )  # fmt: skip
    h, outputs = None, []
    for delta_t, input_t, b_t, c_t in reversed(steps) if reverse else steps:
        update = input_t * b_t
        h = update if h is None else torch.addcmul(update, h, torch.exp(delta_t * A))
        outputs.append(torch.bmm(h, c_t).squeeze(-1))
    return torch.stack(outputs[::-1] if reverse else outputs, dim=1)


def _scan_operator(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: bool) -> Tensor:
    """One scan operator in an exported graph (ONNX has one, too), where the loop would be thousands of nodes."""
    from torch._higher_order_ops.scan import scan

    decay = torch.exp(delta.unsqueeze(-1) * A)  # (B, L, D, N)
    inputs = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    start = u.new_zeros(u.shape[0], *A.shape)
    steps = (decay.movedim(1, 0), inputs.movedim(1, 0), C.movedim(1, 0).unsqueeze(-1))
    _, y = scan(_step, start, steps, reverse=reverse)
    return y.movedim(0, 1)


def _step(h: Tensor, step: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    decay_t, input_t, c_t = step
    h = torch.addcmul(input_t, h, decay_t)
    return h, torch.bmm(h, c_t).squeeze(-1)


def eager_bidirectional_scan(forward: Direction, backward: Direction, z: Tensor, average: bool = False) -> Tensor:
    """Same function as `naive_bidirectional_scan`; the gate is applied once, to the sum."""
    y = forward.scan(eager_selective_scan) + backward.scan(eager_selective_scan, reverse=True)
    y = y * F.silu(z)
    return (y / 2 if average else y).to(forward.u.dtype)
