"""Linear layers in int8, for a CPU: weights quantised once, activations as they come."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from rmeeto.errors import UserError
from rmeeto.layout import OneDNNLinear


def int8(model: nn.Module) -> nn.Module:
    """A copy of a model whose linear layers multiply in int8 (dynamic quantisation), for evaluation on a CPU.

    Projections of the step size stay as they are: the scan reads their weights. What it costs in accuracy has to be
    evaluated; what it gains depends on the processor (VNNI, AMX) and on the sizes: time it beside the model.

    Args:
        model: on the CPU, in fp32; left as it is.

    Raises:
        UserError: this torch has no dynamic quantisation, or none for this processor, or the model is elsewhere or of
            another type, or has no linear layer.
    """
    try:
        from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic
    except ImportError:
        raise UserError(
            f"int8: torch {torch.__version__} has no torch.ao.quantization; use a torch that has, or the model in fp32"
        ) from None
    if torch.backends.quantized.engine in (None, "none"):
        raise UserError("int8: torch has no quantised kernels for this processor; use the model in fp32")
    others = {f"{p.dtype} on {p.device}" for p in model.parameters()} - {"torch.float32 on cpu"}
    if others:
        raise UserError(f"int8: the model has parameters in {', '.join(sorted(others))}; expected fp32 on the CPU")
    model = copy.deepcopy(model).eval()
    layers = {}
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, OneDNNLinear) and "dt_proj" not in name:
            module.__class__ = nn.Linear
            layers[name] = default_dynamic_qconfig
    if not layers:
        raise UserError(f"int8: {type(model).__name__} has no linear layer to quantise; give the model as it was made")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*deprecated")
        return quantize_dynamic(model, layers, dtype=torch.qint8)
