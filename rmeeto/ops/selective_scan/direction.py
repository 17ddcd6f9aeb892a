"""What one direction of the selective scan reads, and how one or two of them become an operator's flat arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_THIN = 16  # a rank at which a matrix product is bound by how its operands lie


class Direction(NamedTuple):
    """One direction: B batch, L tokens in their original order, D channels, N states, R rank.

    Attributes:
        u: (B, L, D) input.
        delta: (B, L, D) step size before bias and softplus; with ``dt_weight`` the features (B, L, R) it is made of.
        A: (D, N), negative; with ``log_A`` it is log(-A), as a mixer's parameters are.
        B, C: (B, L, N).
        D, delta_bias: (D,), or None.
        dt_weight: (D, R), or None. The step size is then ``delta @ dt_weight.T``, which the Triton kernel computes
            itself and never writes to memory.
        log_A: whether A is a logarithm, of which the Triton kernel takes the exponential itself.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    delta_bias: Tensor | None = None
    dt_weight: Tensor | None = None
    log_A: bool = False

    def plain(self, projected: bool = True) -> Direction:
        """The direction with its step size (if ``projected``) and its A computed, for a scan that derives them not."""
        delta, dt_weight, A = self.delta, self.dt_weight, self.A
        if projected and dt_weight is not None:
            delta, dt_weight = _project(delta, dt_weight), None
        if self.log_A:  # in float32 at least: a half format would round the exponential to three digits
            A = -torch.exp(A.float() if A.dtype.itemsize < 4 else A)
        return Direction(self.u, delta, A, self.B, self.C, self.D, self.delta_bias, dt_weight)

    def scan(
        self, selective_scan: Callable, z: Tensor | None = None, reverse: bool = False, softplus: bool = True
    ) -> Tensor:
        """(B, L, D) of a function with the arguments of `naive_selective_scan`."""
        u, delta, A, B, C, D, bias, *_ = self.plain()
        return selective_scan(u, delta, A, B, C, D, z, bias, softplus, reverse)


def _project(features: Tensor, weight: Tensor) -> Tensor:
    if torch.is_grad_enabled() and weight.requires_grad and weight.shape[1] <= _THIN:
        # The same product, but its backward pass multiplies the other way round, which MKL does faster if thin.
        return features @ weight.t().contiguous()
    return F.linear(features, weight)


def of_tensors(scan: Callable[[Direction, Tensor | None, bool, bool], Tensor]) -> Callable[..., Tensor]:
    """From a scan ``(direction, z, softplus, reverse)`` a function with the arguments of `naive_selective_scan`."""

    @functools.wraps(scan)
    def selective_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=True, reverse=False):
        return scan(Direction(u, delta, A, B, C, D, delta_bias), z, delta_softplus, reverse)

    return selective_scan


PER_DIRECTION = 8  # tensors
NUM_TENSORS = 2 * PER_DIRECTION + 1  # of an operator: those of two directions, and the gate
_FIELDS = (
    "Tensor{0} u{1}, Tensor{0} delta{1}, Tensor{0} A{1}, Tensor{0} B{1}, Tensor{0} C{1}, Tensor? D{1}, "
    "Tensor? delta_bias{1}, Tensor? dt_weight{1}"
)
SCHEMA = f"{_FIELDS.format('', '')}, {_FIELDS.format('?', '2')}, Tensor? z, bool softplus, bool reverse, bool average"


def flatten(directions: Sequence[Direction], z: Tensor | None) -> list[Tensor | None]:
    """The tensors of one or two directions and the gate, in the order of `SCHEMA`."""
    tensors: list[Tensor | None] = []
    for direction in directions:
        tensors += direction[:PER_DIRECTION]
    return [*tensors, *[None] * (NUM_TENSORS - 1 - len(tensors)), z]


def unflatten(tensors: Sequence[Tensor | None]) -> tuple[list[Direction], Tensor | None]:
    """The directions (their ``log_A`` is not among the tensors) and the gate."""
    first, second = tensors[:PER_DIRECTION], tensors[PER_DIRECTION : NUM_TENSORS - 1]
    given = [first] if second[0] is None else [first, second]
    return [Direction(*direction) for direction in given], tensors[NUM_TENSORS - 1]  # type: ignore[arg-type]
