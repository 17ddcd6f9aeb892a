"""What a model's tokens were after each merge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.nn import MergingTransformer, VisionMamba


@dataclass(frozen=True)
class Step:
    """The tokens behind a merge.

    Attributes:
        block: that merged; -1 before any merge.
        target: (B, L) the token that each original one is part of, -1 for a pruned one.
        class_index: where the class token is among those left, an int or (B,); None if there is none.
        num_tokens: that are left.
    """

    block: int
    target: Tensor
    class_index: int | Tensor | None
    num_tokens: int


@torch.inference_mode()
def merge_history(model: nn.Module, x: Tensor) -> list[Step]:
    """The tokens of a model before any merge, and after each.

    Args:
        model: one of ours, in evaluation mode: a Vision Mamba, or a Vision Transformer with merging.
        x: (B, 3, H, W), or clips (B, 3, T, H, W).

    Raises:
        UserError: another model, or one in training mode.
    """
    if not isinstance(model, VisionMamba | MergingTransformer):
        raise UserError(
            f"merge_history: got a {type(model).__name__}; expected a model of image_task.models or apply()"
        )
    if model.training:
        raise UserError(f"merge_history: the {type(model).__name__} is in training mode; call .eval() on it")
    has_class = isinstance(model, VisionMamba) or model.num_prefix_tokens > 0
    first = model.class_index if isinstance(model, VisionMamba) else 0
    steps: list[Step] = []
    for block, state in enumerate(model.states(x, trace=True)):
        if not steps:
            tokens = state.target.shape[1]
            start = torch.arange(tokens, device=x.device).expand(len(x), -1)
            steps.append(Step(-1, start, first if has_class else None, tokens))
        if state.hidden.shape[1] < steps[-1].num_tokens:
            steps.append(
                Step(block, state.target, state.class_index if has_class else None, state.hidden.shape[1])
            )
    return steps
