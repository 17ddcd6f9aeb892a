"""The selective scan of Mamba, one direction or both, with its backends."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from rmeeto.ops import triton_support
from rmeeto.ops.backend import Backend, Operator
from rmeeto.ops.cpp_support import built
from rmeeto.ops.selective_scan import cpp, eager, naive, upstream
from rmeeto.ops.selective_scan.direction import Direction

_TRITON = "rmeeto.ops.selective_scan.triton_scan"

SCAN = Operator(
    "selective_scan",
    [
        Backend("triton", ("cuda",), lambda: triton_support.implementation(_TRITON, "selective_scan")),
        Backend("upstream", ("cuda",), lambda: upstream.load()[0]),
        Backend("cpp", ("cpu",), partial(built, cpp.selective_scan)),
        Backend("torch", ("any",), lambda: eager.eager_selective_scan),
        Backend("naive", ("any",), lambda: naive.naive_selective_scan, automatic=False),
    ],
    whole=cpp.selective_scan,
)
BIDIRECTIONAL = Operator(
    "bidirectional_scan",
    [
        Backend("triton", ("cuda",), lambda: triton_support.implementation(_TRITON, "bidirectional_scan")),
        Backend("upstream", ("cuda",), lambda: upstream.load()[1]),
        Backend("cpp", ("cpu",), partial(built, cpp.bidirectional_scan)),
        Backend("torch", ("any",), lambda: eager.eager_bidirectional_scan),
        Backend("naive", ("any",), lambda: naive.naive_bidirectional_scan, automatic=False),
    ],
    whole=cpp.bidirectional_scan,
)


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
    backend: str = "auto",
) -> Tensor:
    """Scan a sequence with input-dependent state-space parameters (channel-major, as upstream's function).

    Args:
        u, delta, z: (B, D, L) input, step size before bias and softplus, gate (applied as ``silu(z)``).
        A: (D, N), negative.
        B, C: (B, N, L).
        D, delta_bias: (D,).
        delta_softplus: apply softplus to ``delta + delta_bias``.
        reverse: scan from the last token to the first, without flipping anything.
        backend: ``auto``, ``naive``, ``torch``, ``cpp``, ``triton`` or ``upstream``.

    Returns:
        (B, D, L), in ``u``'s dtype.

    Raises:
        ValueError: shapes that do not fit, or a backend that cannot run here.

    Source: Mamba, arXiv 2312.00752.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    tokens = SCAN.implementation(u.device.type, backend)(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        A,
        B.transpose(1, 2),
        C.transpose(1, 2),
        D,
        None if z is None else z.transpose(1, 2),
        delta_bias,
        delta_softplus,
        reverse,
    )
    return tokens.transpose(1, 2)


def bidirectional_scan(
    forward: Direction, backward: Direction, z: Tensor, average: bool = False, backend: str = "auto"
) -> Tensor:
    """Sum (or mean) of a forward and a backward scan that share one gate, token-major and without flips.

    Args:
        forward, backward: what they read, tokens in their original order. What one has of `Direction`'s optional
            fields the other has too.
        z: (B, L, D) gate, applied as ``silu(z)``.
        average: halve the sum.
        backend: as in `selective_scan`.

    Returns:
        (B, L, D).

    Raises:
        ValueError: the directions have not the same fields, or a backend that cannot run here.
    """
    for name in ("D", "delta_bias", "dt_weight"):
        if (getattr(forward, name) is None) != (getattr(backward, name) is None):
            raise ValueError(f"bidirectional_scan: one direction has {name}; expected both to have it, or none")
    if forward.log_A != backward.log_A:
        raise ValueError("bidirectional_scan: one direction has log_A=True; expected both to have it, or none")
    return BIDIRECTIONAL.implementation(z.device.type, backend)(forward, backward, z, average)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
) -> None:
    if u.ndim != 3 or A.ndim != 2 or A.shape[0] != u.shape[1]:
        raise ValueError(
            f"selective_scan: u has shape {tuple(u.shape)} and A {tuple(A.shape)}; expected (B, D, L) and (D, N)"
        )
    batch, channels, length = u.shape
    state = (batch, A.shape[1], length)
    wanted = {
        "delta": u.shape,
        "z": u.shape,
        "B": state,
        "C": state,
        "D": (channels,),
        "delta_bias": (channels,),
    }
    given = {"delta": delta, "z": z, "B": B, "C": C, "D": D, "delta_bias": bias}
    for name, tensor in given.items():
        if tensor is not None and tuple(tensor.shape) != tuple(wanted[name]):
            raise ValueError(
                f"selective_scan: {name} has shape {tuple(tensor.shape)}; expected {tuple(wanted[name])} "
                f"for u of shape {tuple(u.shape)} (B, D, L) and A of shape {tuple(A.shape)} (D, N)"
            )
