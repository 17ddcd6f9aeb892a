"""The selective scan of the ``mamba_ssm`` package, where its compiled extension really imports."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor

from rmeeto.ops.backend import BackendUnavailable
from rmeeto.ops.selective_scan.direction import Direction


def load() -> tuple[Callable, Callable]:
    """`selective_scan` and `bidirectional_scan` for token-major tensors on a GPU.

    Raises:
        BackendUnavailable: the package or its extension does not import.
    """
    try:
        # The package imports without it: built without the Mamba-1 kernel, or for another torch.
        importlib.import_module("selective_scan_cuda")
        selective_scan_fn = importlib.import_module(
            "mamba_ssm.ops.selective_scan_interface"
        ).selective_scan_fn
    except Exception as error:  # a broken extension can raise anything
        raise BackendUnavailable(f"mamba_ssm's compiled scan does not import: {error}") from error

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
        """Same function as `naive_selective_scan`; upstream is channel-major and knows one direction: flips."""
        dtype = u.dtype
        u, delta, B, C = (_channel_major(t.to(dtype), reverse) for t in (u, delta, B, C))
        z = None if z is None else _channel_major(z.to(dtype), reverse)
        D, delta_bias = (None if t is None else t.float() for t in (D, delta_bias))
        y = selective_scan_fn(
            u, delta, A.float(), B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus
        )
        return (y.flip(-1) if reverse else y).transpose(1, 2)

    def bidirectional_scan(
        forward: Direction, backward: Direction, z: Tensor, average: bool = False
    ) -> Tensor:
        """Same function as `naive_bidirectional_scan`."""
        y = forward.scan(selective_scan, z) + backward.scan(selective_scan, z, reverse=True)
        return y / 2 if average else y

    return selective_scan, bidirectional_scan


def _channel_major(x: Tensor, reverse: bool) -> Tensor:
    """(B, L, D) to contiguous (B, D, L), from the last token on if ``reverse``."""
    x = x.transpose(1, 2)
    return (x.flip(-1) if reverse else x).contiguous()
