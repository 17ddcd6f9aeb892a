"""Both directions' convolution on the C++ kernel, registered with torch.library as ``rmeeto::conv1d``.

Shapes: x (B, L, D), weight (D, 1, K), bias (D,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rmeeto.ops import build
from rmeeto.ops.conv1d import eager
from rmeeto.ops.register import operator


def load() -> Callable:
    """`bidirectional_conv1d` for tensors on the CPU.

    Raises:
        BackendUnavailable: the kernel cannot be built here.
    """
    build.library()
    return bidirectional_conv1d


def bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Same function as `naive_bidirectional_conv1d`; other types and empty tensors go to the eager path."""
    if x.dtype not in (torch.float32, torch.bfloat16) or x.numel() == 0:
        return eager.eager_bidirectional_conv1d(x, weight, bias, weight_b, bias_b)
    return _conv(x, weight.float(), bias.float(), weight_b.float(), bias_b.float())


def _forward_cpu(
    x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
    _call("forward", x, (weight, bias, weight_b, bias_b), y=y)
    return y


def _backward_cpu(
    dy: Tensor, dy_b: Tensor, x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dy, dy_b = (_rows(d.to(x.dtype)) for d in (dy, dy_b))
    gradients = tuple(torch.empty(t.shape, dtype=t.dtype) for t in (x, weight, bias, weight_b, bias_b))
    _call("backward", x, (weight, bias, weight_b, bias_b), dy=(dy, dy_b), gradients=gradients)
    return gradients  # type: ignore[return-value]


def _forward_fake(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    def like() -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)

    return like(), like()


def _backward_fake(dy: Tensor, dy_b: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in inputs)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor, dy_b: Tensor) -> tuple:
    return _conv_backward(dy, dy_b, *ctx.saved_tensors)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(
    name: str,
    x: Tensor,
    parameters: tuple[Tensor, ...],
    y: tuple[Tensor | None, ...] = (None, None),
    dy: tuple[Tensor, ...] = (),
    gradients: tuple[Tensor | None, ...] = (None,) * 5,
) -> None:
    """Pack struct Conv of csrc/conv.cpp and run the kernel."""
    x = _rows(x)
    weight, bias, weight_b, bias_b = (tensor.contiguous() for tensor in parameters)
    dx, dweight, dbias, dweight_b, dbias_b = gradients
    fields = [*x.shape, weight.shape[-1], x.data_ptr(), *x.stride()[:2]]
    fields += [build.pointer(tensor) for tensor in (weight, weight_b, bias, bias_b, *y)]
    fields += (
        [d.data_ptr() for d in dy]
        + [d.stride(0) for d in dy]
        + [d.stride(1) for d in dy]
        + [0] * (6 - 3 * len(dy))
    )
    fields += [build.pointer(tensor) for tensor in (dx, dweight, dweight_b, dbias, dbias_b)]
    build.call(f"rmeeto_conv_{name}{build.suffix(x.dtype)}", fields)


_PARAMETERS = "Tensor x, Tensor weight, Tensor bias, Tensor weight_b, Tensor bias_b"
_conv = operator(
    "conv1d", f"({_PARAMETERS}) -> (Tensor, Tensor)", _forward_cpu, _forward_fake, _setup_context, _backward
)
_conv_backward = operator(
    "conv1d_backward",
    f"(Tensor dy, Tensor dy_b, {_PARAMETERS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_cpu,
    _backward_fake,
)
