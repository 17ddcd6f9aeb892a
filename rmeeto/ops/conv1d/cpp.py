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
from rmeeto.ops.cpp_support import STORAGE, Task, integers, pointers, rows, run, spread, suffix
from rmeeto.ops.register import operator


class ConvStruct(Task):
    """struct Conv of csrc/conv.cpp."""

    _fields_ = [
        *integers("batch", "length", "channels", "kernel"),
        *pointers("x"),
        *integers("x_batch", "x_token"),
        *pointers("weight", "bias", "y", "dy", each=2),
        *integers("dy_batch", "dy_token", each=2),
        *pointers("dx"),
        *pointers("dweight", "dbias", each=2),
    ]


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
    if x.dtype not in STORAGE or x.numel() == 0:
        return eager.eager_bidirectional_conv1d(x, weight, bias, weight_b, bias_b)
    return _conv(x, weight.float(), bias.float(), weight_b.float(), bias_b.float())


def _forward_cpu(
    x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
    _run("forward", x, (weight, bias, weight_b, bias_b), y=y)
    return y


def _backward_cpu(
    dy: Tensor, dy_b: Tensor, x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dy, dy_b = (rows(d.to(x.dtype)) for d in (dy, dy_b))
    parameters = weight, bias, weight_b, bias_b
    dx, dweight, dbias, dweight_b, dbias_b = (torch.empty(t.shape, dtype=t.dtype) for t in (x, *parameters))
    _run(
        "backward",
        x,
        parameters,
        dy=(dy, dy_b),
        dy_batch=(dy.stride(0), dy_b.stride(0)),
        dy_token=(dy.stride(1), dy_b.stride(1)),
        dx=dx,
        dweight=(dweight, dweight_b),
        dbias=(dbias, dbias_b),
    )
    return dx, dweight, dbias, dweight_b, dbias_b


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


def _run(name: str, x: Tensor, parameters: tuple[Tensor, ...], **fields: Any) -> None:
    weight, bias, weight_b, bias_b = (tensor.contiguous() for tensor in parameters)
    batch, length, channels = x.shape
    conv = ConvStruct(
        batch=batch,
        length=length,
        channels=channels,
        kernel=weight.shape[-1],
        weight=(weight, weight_b),
        bias=(bias, bias_b),
        **spread("x", rows(x)),
        **fields,
    )
    run(f"rmeeto_conv_{name}{suffix(x.dtype)}", conv)


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
