"""The selective scan of the ``mamba_ssm`` package, where its compiled extension really imports."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

from torch import Tensor

from rmeeto.ops.backend import BackendUnavailable
from rmeeto.ops.selective_scan.direction import Direction, of_tensors
from rmeeto.ops.selective_scan.naive import naive_bidirectional_scan


def load() -> tuple[Callable, Callable]:
    """`selective_scan` and `bidirectional_scan` for token-major tensors on a GPU.

    Raises:
        BackendUnavailable: the package or its extension does not import.
    """
    try:
        # The package imports without it: built without the Mamba-1 kernel, or for another torch.
        importlib.import_module("selective_scan_cuda")
        selective_scan_fn = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except Exception as error:  # a broken extension can raise anything
        raise BackendUnavailable(f"mamba_ssm's compiled scan does not import: {error}") from error

    @of_tensors
    def selective_scan(d: Direction, z: Tensor | None, softplus: bool, reverse: bool) -> Tensor:
        """Same function as `naive_selective_scan`; upstream is channel-major and knows one direction: flips."""
        dtype = d.u.dtype
        u, delta, B, C = (_channel_major(t.to(dtype), reverse) for t in (d.u, d.delta, d.B, d.C))
        z = None if z is None else _channel_major(z.to(dtype), reverse)
        D, bias = (None if t is None else t.float() for t in (d.D, d.delta_bias))
        y = selective_scan_fn(u, delta, d.A.float(), B, C, D=D, z=z, delta_bias=bias, delta_softplus=softplus)
        return (y.flip(-1) if reverse else y).transpose(1, 2)

    return selective_scan, partial(naive_bidirectional_scan, scan=selective_scan)


def _channel_major(x: Tensor, reverse: bool) -> Tensor:
    """(B, L, D) to contiguous (B, D, L), from the last token on if ``reverse``."""
    x = x.transpose(1, 2)
    return (x.flip(-1) if reverse else x).contiguous()
