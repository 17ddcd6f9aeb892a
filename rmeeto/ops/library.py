"""Registers operators with torch.library, so that compiled and exported graphs contain them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_LIBRARY = torch.library.Library("rmeeto", "FRAGMENT")


def operator(
    name: str,
    schema: str,
    implementation: Callable,
    fake: Callable,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
    keys: Sequence[str] = ("CPU",),
) -> Callable:
    """Define ``torch.ops.rmeeto.<name>``.

    Args:
        name: of the operator.
        schema: arguments and results, in torch's notation.
        implementation: for the tensors of ``keys``.
        fake: empty results of the right shapes and types.
        setup_context, backward: as of `torch.library.register_autograd`; None for an operator without gradients.
        keys: of torch's dispatcher: ``CPU``, ``CUDA``.

    Returns:
        The function to call.
    """
    _LIBRARY.define(name + schema)
    for key in keys:
        _LIBRARY.impl(name, implementation, key)
    torch.library.register_fake(f"rmeeto::{name}", fake, lib=_LIBRARY)
    registered = getattr(torch.ops.rmeeto, name).default
    if backward is None or setup_context is None:
        return registered
    torch.library.register_autograd(f"rmeeto::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
    # In eager mode a Function costs less than the registered formula, whose every call goes through more of Python.
    save, differentiate = setup_context, staticmethod(once(backward))

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = registered(*inputs)
            save(ctx, inputs, output)
            return output

        backward = differentiate

    def call(*inputs: Any) -> Any:
        eager = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return Function.apply(*inputs) if eager else registered(*inputs)

    return call


def once(backward: Callable) -> Callable:
    """A backward pass that refuses to be differentiated: it is an operator without a derivative of its own."""

    def differentiate(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "the kernels of rmeeto have no second derivative; for create_graph=True run forward and backward with "
                "RMEETO_BACKEND=torch in the environment, whose operators are torch's own"
            )
        return backward(ctx, *gradients)

    return differentiate
