"""Ways of a CPU to multiply by linear weights: in another order in memory, or by another library of torch's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def by_columns(model: nn.Module) -> nn.Module:
    """Store the weights of linear layers by columns, in place: what multiplies an input feature side by side.

    Shapes, values and the state dict stay as they are; only their order in memory changes, which spares a product on a
    CPU its transposed reading. Rounding may differ in the last bits. For inference: an optimizer keeps the order of its
    own state.

    Args:
        model: in any type, on the CPU.

    Returns:
        The model.
    """
    for module in _linear_layers(model):
        module.weight.data = module.weight.data.t().contiguous().t()
    return model


class OneDNNLinear(nn.Linear):
    """A linear layer that multiplies by oneDNN where nothing is to be differentiated, in fp32 on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        plain = {input.dtype, self.weight.dtype} == {torch.float32} and input.device.type == "cpu"
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not plain or torch.compiler.is_compiling():
            return super().forward(input)
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")


def by_onednn(model: nn.Module) -> nn.Module:
    """Let the linear layers of a model multiply by oneDNN instead of MKL, in place, by the operator that torch's own
    compiler calls. Which of the two is faster depends on processor and batch: time it (`python -m benchmarks formats`).

    Parameters, state dict and training stay as they are. Rounding may differ in the last bits. Projections of the step
    size are left: the scan reads their weights.

    Args:
        model: evaluated in fp32 on a CPU; else nothing changes.

    Returns:
        The model.
    """
    if torch.backends.mkldnn.is_available():
        for module in _linear_layers(model, but="dt_proj"):
            module.__class__ = OneDNNLinear
    return model


def _linear_layers(model: nn.Module, but: str | None = None) -> list[nn.Linear]:
    named = model.named_modules()
    return [module for name, module in named if type(module) is nn.Linear and not (but and but in name)]
