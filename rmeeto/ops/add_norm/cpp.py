"""Residual add and RMS norm on the C++ kernel, registered with torch.library as ``rmeeto::add_rms_norm``.

Shapes: hidden, residual (B, L, C), weight (C,).
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from rmeeto.ops.add_norm import naive
from rmeeto.ops.cpp_support import STORAGE, Task, integers, pointer, pointers, run, suffix
from rmeeto.ops.library import operator


class NormStruct(Task):
    """struct Norm of csrc/norm.cpp."""

    __slots__ = ()
    _fields_ = [
        *integers("rows", "channels"),
        *pointers("hidden", "residual", "weight"),
        ("eps", ctypes.c_double),
        *pointers("sum", "normed", "dsum", "dnormed", "dhidden", "dresidual", "dweight"),
    ]


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Same function as `naive_add_rms_norm`; types other than fp32 and bf16 go to the eager path."""
    wide = residual is not None and residual.dtype != torch.float32
    if hidden.dtype not in STORAGE or weight.dtype not in STORAGE or wide:
        return naive.naive_add_rms_norm(hidden, residual, weight, eps)
    return _norm(hidden, residual, weight, eps)


def _forward_cpu(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    normed = torch.empty(hidden.shape, dtype=weight.dtype)
    total = torch.empty(hidden.shape, dtype=torch.float32)
    hidden = hidden.contiguous()
    residual = None if residual is None else residual.contiguous()
    norm = NormStruct()
    norm.hidden, norm.residual, norm.normed = hidden.data_ptr(), pointer(residual), normed.data_ptr()
    _run(f"forward{suffix(hidden.dtype, weight.dtype)}", norm, total, weight, eps)
    return normed, total


def _backward_cpu(
    dnormed: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, hidden_dtype: torch.dtype, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dresidual = torch.empty(total.shape, dtype=torch.float32)
    dhidden = torch.empty(total.shape, dtype=hidden_dtype)
    dweight = torch.empty(weight.shape, dtype=torch.float32)
    dnormed, dtotal = dnormed.to(weight.dtype).contiguous(), dtotal.contiguous()
    norm = NormStruct()
    norm.dnormed, norm.dsum = dnormed.data_ptr(), dtotal.data_ptr()
    norm.dhidden, norm.dresidual = dhidden.data_ptr(), dresidual.data_ptr()
    norm.dweight = dweight.data_ptr()
    _run(f"backward{suffix(hidden_dtype, weight.dtype)}", norm, total, weight, eps)
    return dhidden, dresidual, dweight.to(weight.dtype)


def _forward_fake(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    shape, device = hidden.shape, hidden.device
    return torch.empty(shape, dtype=weight.dtype, device=device), torch.empty(shape, dtype=torch.float32, device=device)


def _backward_fake(
    dnormed: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, hidden_dtype: torch.dtype, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dhidden = torch.empty(total.shape, dtype=hidden_dtype, device=total.device)
    return dhidden, torch.empty_like(dhidden, dtype=torch.float32), torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    hidden, residual, weight, eps = inputs
    ctx.hidden_dtype, ctx.has_residual, ctx.eps = hidden.dtype, residual is not None, eps
    ctx.save_for_backward(output[1], weight)


def _backward(ctx: Any, dnormed: Tensor, dtotal: Tensor) -> tuple:
    dhidden, dresidual, dweight = _norm_backward(dnormed, dtotal, *ctx.saved_tensors, ctx.hidden_dtype, ctx.eps)
    return dhidden, dresidual if ctx.has_residual else None, dweight, None


def _run(name: str, norm: NormStruct, total: Tensor, weight: Tensor, eps: float) -> None:
    scale = weight.float().contiguous()
    norm.rows, norm.channels = total.shape[:-1].numel(), total.shape[-1]
    norm.weight, norm.eps, norm.sum = scale.data_ptr(), eps, total.data_ptr()
    run(f"rmeeto_norm_{name}", norm)


_norm = operator(
    "add_rms_norm",
    "(Tensor hidden, Tensor? residual, Tensor weight, float eps) -> (Tensor, Tensor)",
    _forward_cpu,
    _forward_fake,
    _setup_context,
    _backward,
)
_norm_backward = operator(
    "add_rms_norm_backward",
    "(Tensor dnormed, Tensor dtotal, Tensor total, Tensor weight, ScalarType hidden_dtype, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    _backward_cpu,
    _backward_fake,
)
