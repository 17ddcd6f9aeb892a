"""Both directions' convolution on the C++ kernel, registered with torch.library as ``rmeeto::conv1d``.

Shapes: x (B, L, D), weight (D, 1, K), bias (D,).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmeeto.ops.conv1d import eager
from rmeeto.ops.cpp_support import STORAGE, Task, as_type, integers, pointers, rows, run, spread, suffix
from rmeeto.ops.library import operator


class ConvStruct(Task):
    """struct Conv of csrc/conv.cpp."""

    __slots__ = ()
    _fields_ = [
        *integers("batch", "length", "channels", "kernel"),
        *pointers("x"),
        *integers("x_batch", "x_token"),
        *pointers("weight", "bias", "y", "dy", each=2),
        *integers("dy_batch", "dy_token", each=2),
        *pointers("dx"),
        *pointers("dweight", "dbias", each=2),
    ]


def bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Same function as `naive_bidirectional_conv1d`; other types and empty tensors go to the eager path."""
    if x.dtype not in STORAGE or x.numel() == 0:
        return eager.eager_bidirectional_conv1d(x, weight, bias, weight_b, bias_b)
    return _conv(x, *(as_type(parameter, torch.float32) for parameter in (weight, bias, weight_b, bias_b)))


def _forward_cpu(x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor) -> tuple[Tensor, Tensor]:
    y, y_b = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
    conv = ConvStruct()
    conv.y[:] = y.data_ptr(), y_b.data_ptr()
    _run("forward", conv, x, (weight, bias, weight_b, bias_b))
    return y, y_b


def _backward_cpu(
    dy: Tensor, dy_b: Tensor, x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor, bias_b: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dy, dy_b = (rows(d.to(x.dtype)) for d in (dy, dy_b))
    parameters = weight, bias, weight_b, bias_b
    dx, dweight, dbias, dweight_b, dbias_b = (torch.empty(t.shape, dtype=t.dtype) for t in (x, *parameters))
    conv = ConvStruct()
    for k, d in enumerate((dy, dy_b)):
        conv.dy[k], conv.dy_batch[k], conv.dy_token[k] = spread(d)
    conv.dx = dx.data_ptr()
    conv.dweight[:] = dweight.data_ptr(), dweight_b.data_ptr()
    conv.dbias[:] = dbias.data_ptr(), dbias_b.data_ptr()
    _run("backward", conv, x, parameters)
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


def _run(name: str, conv: ConvStruct, x: Tensor, parameters: tuple[Tensor, ...]) -> None:
    x = rows(x)
    weight, bias, weight_b, bias_b = (tensor.contiguous() for tensor in parameters)
    conv.batch, conv.length, conv.channels = x.shape
    conv.kernel = weight.shape[-1]
    conv.x, conv.x_batch, conv.x_token = spread(x)
    conv.weight[:] = weight.data_ptr(), weight_b.data_ptr()
    conv.bias[:] = bias.data_ptr(), bias_b.data_ptr()
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
