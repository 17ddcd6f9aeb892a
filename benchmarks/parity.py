"""Nothing is timed that does not first agree with the definition: its output, and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# RMS of the difference over RMS of the reference, by the type that values are stored in.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-3}


class Refused(Exception):
    """A way of computing something that does not agree with the definition; the message says where and how far."""


@dataclass(frozen=True)
class Case:
    """Several ways to compute the same function of the same tensors.

    Args:
        what: the operator.
        shape: as the tables show it.
        inputs: by name, on the device and of the type to be timed.
        ways: by name, the functions to be timed; results are a tensor or a tuple of tensors.
        reference: the definition; it is called with the inputs in float64.
        dtype: that the inputs are stored in; it sets the tolerance.
        result: what is compared, from what a way returns and the inputs; None: that itself.
        traffic: bytes that must be read and written at least (forward).
        macs: multiply-accumulates of matrix products (forward).
        exponentials: in the forward pass.
        constant: names of inputs that no gradient flows to.
        differentiable: whether there are gradients at all.
        roundings: of values on the way that the definition does not have, and its own: times the tolerance.
        sample: a smaller case that is verified in its place.
        restore: undoes what the ways have set.
    """

    what: str
    shape: tuple[int, ...]
    inputs: dict[str, Tensor]
    ways: dict[str, Callable[..., Any]]
    reference: Callable[..., Any]
    dtype: torch.dtype = torch.float32
    result: Callable[..., Any] | None = None
    traffic: int = 0
    macs: int = 0
    exponentials: int = 0
    constant: tuple[str, ...] = ()
    differentiable: bool = True
    roundings: int = 1
    sample: Case | None = None
    restore: Callable[[], None] = lambda: None

    def call(self, way: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Results that are compared."""
        got = way(*inputs)
        return as_tuple(got if self.result is None else self.result(got, *inputs))


def as_tuple(values: Any) -> tuple[Tensor, ...]:
    """One tensor, or some."""
    return (values,) if isinstance(values, Tensor) else tuple(values)


def rms_ratio(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of the expected values; infinite if shapes differ or anything is not finite."""
    got, expected = got.detach().double(), expected.detach().double()
    if got.shape != expected.shape or not torch.isfinite(got).all():
        return float("inf")
    scale = expected.square().mean().sqrt().clamp_min(1e-30)
    return float((got - expected).square().mean().sqrt() / scale)


def agree(name: str, got: Tensor | None, expected: Tensor, tolerance: float) -> float:
    """The RMS ratio of two tensors.

    Raises:
        Refused: it is above the tolerance.
    """
    ratio = float("inf") if got is None else rms_ratio(got, expected)
    if not ratio <= tolerance:
        raise Refused(f"{name}: RMS ratio {ratio:.1e} > {tolerance:.0e}")
    return ratio


class Verifier:
    """Compares ways of one case with its definition, which is computed once.

    Args:
        case: whose ways are compared.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        exact = leaves(case, torch.float64)
        self.expected = case.call(case.reference, exact)
        self.gradients = gradients(self.expected, exact, case.dtype) if case.differentiable else None

    def verify(self, way: Callable[..., Any]) -> dict[str, float]:
        """The worst RMS ratio of the results, and of the gradients.

        Raises:
            Refused: one is above the tolerance.
        """
        case, tolerance = self.case, self.case.roundings * TOLERANCE[self.case.dtype]
        inputs = leaves(case)
        got = case.call(way, inputs)
        if len(got) != len(self.expected):
            raise Refused(f"{len(got)} results, expected {len(self.expected)}")
        outputs = enumerate(zip(got, self.expected))
        worst = {"output": max(agree(f"output {i}", *pair, tolerance) for i, pair in outputs)}
        if self.gradients is not None:
            named = zip(case.inputs, gradients(got, inputs, case.dtype), self.gradients)
            wanted = [triple for triple in named if triple[2] is not None]
            worst["gradients"] = max(agree(f"gradient of {name}", a, b, tolerance) for name, a, b in wanted)
        return worst


def leaves(case: Case, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The inputs, strides kept, as leaves of a new graph; in another type if one is given."""
    made = []
    for name, tensor in case.inputs.items():
        real = tensor.is_floating_point()
        tensor = tensor.detach().to(dtype) if real and dtype else tensor.detach()
        made.append(tensor.requires_grad_(case.differentiable and real and name not in case.constant))
    return made


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor | None]:
    """Gradients of the outputs, weighted by random numbers of a type; None for inputs that have none."""
    outputs = [output for output in outputs if output.requires_grad]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, upstream(outputs, dtype), allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


def upstream(outputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Random numbers for the outputs, the same in each call, rounded to a type."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(out.shape, generator=generator).to(dtype).to(out) for out in outputs]
