"""What a mixer does between its two linear layers, where one autograd function can do all of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from rmeeto.ops.conv1d import CONV1D
from rmeeto.ops.selective_scan import BIDIRECTIONAL


def one_function(xz: Tensor) -> Callable | None:
    """`triton_mixer.mix` if it is for this input: eager training with the convolution and the scan on Triton.

    Args:
        xz: (B, L, 2 D), in_proj's output.

    Returns:
        The function, or None: then the operators are to be called one by one.
    """
    eager = torch.is_grad_enabled() and xz.requires_grad and not torch.compiler.is_compiling()
    if not eager or xz.dtype == torch.float64 or xz.numel() == 0:
        return None
    if not all(operator.runs("triton", xz.device.type) for operator in (CONV1D, BIDIRECTIONAL)):
        return None
    return importlib.import_module("rmeeto.ops.triton_mixer").mix
