"""What a model's tokens were after each merge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.merge import TokenState


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
        model: in evaluation mode; one of image_task.models or video_task.models, or that `rmeeto.apply` was given.
        x: (B, C, H, W), or clips (B, C, T, H, W).

    Raises:
        UserError: another model, or one in training mode.
    """
    steps: list[Step] = []
    for block, state in enumerate(traced_states(model, x, "merge_history")):
        if not steps:
            tokens = state.target.shape[1]
            start = torch.arange(tokens, device=x.device).expand(len(x), -1)
            first = None if state.class_index is None else not_patches(model)[0]
            steps.append(Step(-1, start, first, tokens))
        if state.hidden.shape[1] < steps[-1].num_tokens:
            steps.append(Step(block, state.target, state.class_index, state.hidden.shape[1]))
    return steps


def traced_states(model: nn.Module, x: Tensor, caller: str) -> Iterable[TokenState]:
    """The state after each block, with where each original token is.

    Raises:
        UserError: a model that does not merge, or one in training mode.
    """
    name = type(model).__name__
    if not (hasattr(model, "merge_config") and hasattr(model, "states")):
        raise UserError(f"{caller}: got a {name}; expected a model of image_task.models or apply()")
    if model.training:
        raise UserError(f"{caller}: the {name} is in training mode; call .eval() on it first")
    return model.states(x, trace=True)


def not_patches(model: nn.Module) -> list[int]:
    """Where the tokens stand that are no patches: class token, distillation token, registers."""
    found = getattr(model, "class_index", None)
    prefix = getattr(model, "num_prefix_tokens", 1)
    return list(range(prefix)) if found is None or prefix != 1 else [found]
