"""The definition of the selective scan, written as the equations are.

Shapes: B batch, L tokens, D channels, N states. u, delta, z (B, L, D); A (D, N); B, C (B, L, N); D, delta_bias (D,).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rmeeto.ops.selective_scan.direction import Direction


def naive_selective_scan(
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
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = C_t h_t + D u_t;  out_t = y_t * silu(z_t).

    Computes in the widest of fp32 and the inputs' type and returns ``u``'s type. With ``reverse`` the recurrence
    starts at the last token and h_{t+1} takes the place of h_{t-1}.

    Source: Mamba, arXiv 2312.00752, equation 2 with the zero-order hold on A and Euler's rule on B.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    out_dtype = u.dtype
    u, delta, A, B, C = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)
    batch, length, channels = u.shape
    h = u.new_zeros(batch, channels, A.shape[1])
    outputs: list[Tensor] = [u] * length
    for t in reversed(range(length)) if reverse else range(length):
        decay = torch.exp(delta[:, t, :, None] * A)
        h = decay * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        outputs[t] = (h * C[:, t, None, :]).sum(-1)
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D.to(dtype) * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(out_dtype)


def naive_bidirectional_scan(
    forward: Direction,
    backward: Direction,
    z: Tensor,
    average: bool = False,
    scan: Callable[..., Tensor] = naive_selective_scan,
) -> Tensor:
    """Sum (or mean) of a forward and a backward scan that share the gate z (B, L, D)."""
    y = forward.scan(scan, z) + backward.scan(scan, z, reverse=True)
    return y / 2 if average else y
