"""Tokens to feature maps: back to the full grid after merging, in timm's formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor

from rmeeto.merge.plan import take_tokens

FORMATS = ("NCHW", "NLC")


def unmerge(tokens: Tensor, target: Tensor) -> Tensor:
    """Give every original token the value of the token that it is part of: (B, L', C) -> (B, L, C).

    Args:
        tokens: after any number of merges.
        target: (B, L) where each original token is now. A pruned one (-1) takes the value of the token that is left of
            the one before it, the first ones that of the first behind them.
    """
    index = torch.arange(target.shape[1], device=target.device)
    left = torch.where(target < 0, -1, index).cummax(dim=1).values
    first = (target >= 0).int().argmax(dim=1, keepdim=True)
    return take_tokens(tokens, target.gather(1, torch.where(left < 0, first, left)))


def class_first(tokens: Tensor, class_index: int | Tensor) -> Tensor:
    """Put the class token in front, the others behind it in their order: (B, L, C) -> (B, L, C)."""
    batch, length, _ = tokens.shape
    index = torch.arange(length, device=tokens.device).expand(batch, -1)
    at = class_index.unsqueeze(1) if isinstance(class_index, Tensor) else class_index
    order = torch.where(index == 0, at, index - (index <= at).long())
    return take_tokens(tokens, order)


def class_token(tokens: Tensor, class_index: int | Tensor) -> Tensor:
    """(B, L, C) -> (B, C): the class token, wherever it is."""
    if isinstance(class_index, int):
        return tokens[:, class_index]
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), class_index]


def take_indices(depth: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Blocks asked for (timm's convention: None all, n the last n, else their indices), and the last of them.

    Raises:
        ValueError: a block that does not exist.
    """
    try:
        return feature_take_indices(depth, indices)
    except (AssertionError, ValueError):  # its own, and of no index at all
        raise ValueError(
            f"indices={indices!r}; expected None, the last 1 to {depth}, or some of the {depth} blocks"
        ) from None


def to_map(patches: Tensor, grid: tuple[int, ...], output_fmt: str) -> Tensor:
    """Patch tokens (B, P, C) in a format: "NLC" as they are, "NCHW" (B, C, *grid).

    Raises:
        ValueError: an unknown format, or tokens that do not fill the grid.
    """
    if output_fmt not in FORMATS:
        raise ValueError(f"output_fmt={output_fmt!r}; expected one of {FORMATS}")
    if output_fmt == "NLC":
        return patches
    if patches.shape[1] != torch.Size(grid).numel():
        raise ValueError(
            f'output_fmt="NCHW": {patches.shape[1]} tokens left of a grid {tuple(grid)}; '
            'give unmerge=True, or output_fmt="NLC"'
        )
    return patches.reshape(patches.shape[0], *grid, -1).movedim(-1, 1).contiguous()


def as_outputs(
    features: list, final: Tensor | None, with_prefix: bool, as_dict: bool
) -> list | tuple[Tensor, list] | dict[str, Any]:
    """What ``forward_intermediates`` returns, as timm has it.

    Args:
        features: maps, or with their prefix tokens in pairs.
        final: the output; None where it is not asked for.
        with_prefix: whether they are pairs.
        as_dict: by name.
    """
    if not as_dict:
        return features if final is None else (final, features)
    named: dict[str, Any] = {"image_intermediates": [pair[0] for pair in features] if with_prefix else features}
    if with_prefix:
        named["image_intermediates_prefix"] = [pair[1] for pair in features]
    return named if final is None else {**named, "image_features": final}
