"""`match`: a rule applied to one metric, without a model."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rmeeto.merge.plan import MergePlan
from rmeeto.merge.rules import RuleFunction, find_rule
from rmeeto.merge.similarity import DISTANCES
from rmeeto.merge.tokens import Tokens


def match(
    metric: Tensor,
    r: int,
    class_index: int | Tensor | None = None,
    distance: str = "cosine",
    neighbour: int = 1,
    keep_order: bool = True,
    prune: bool = False,
    class_position: str = "proportional",
    *,
    prefix: int | None = None,
    window: tuple[int, int, int] | None = None,
    grid: tuple[int, int, int] | None = None,
    position: Tensor | None = None,
    rule: str | RuleFunction | None = None,
    features: Mapping[str, Tensor] | None = None,
) -> MergePlan:
    """Choose the r sources most similar to a destination.

    The class token is set aside; of the others (patches), even positions are sources and odd positions destinations
    (see `Tokens`). Each source picks a destination; the r best pairs merge. Ties go to the lower position.

    Args:
        metric: (B, L, C) tensor to measure similarity on, the class token included.
        r: tokens to remove; clamped to half of the tokens, 0 or less removes none.
        class_index, prefix: as in `Tokens`.
        distance, neighbour, keep_order, prune, class_position: as in `MergeConfig`.
        window: as in `MergeConfig`: a source with no destination in it comes last, and if it has to go all the same,
            goes into the token next to it in the sequence. As large as the grid: at all of them.
        grid: T, H, W of the tokens before any merge, which ``window`` counts in.
        position: (B, L) the ``cell`` of `Tokens`; after a merge it is ``position.gather(1, plan.keep)``.
        rule: another rule, by name or as a function; it takes ``distance``, ``neighbour`` and ``window`` where it asks
            for them. None: ``exact``, or with a window ``window``.
        features: (B, L, ...) tensors that such a rule asks for (`rmeeto.merge.rules.FEATURES`), by name.

    Returns:
        The plan. Unordered and proportional, ``plan.class_index`` keeps the published formula's value, which for a
        class token behind position S is not where the token lands (``class_position="exact"`` is).

    Raises:
        ValueError: an unknown option, a class index out of range, too few destinations for ``neighbour``, or a window
            without its grid or beside options that exclude it.

    Source: R-MeeTo (arXiv 2412.12496), section 3; the bipartite matching is ToMe's (arXiv 2210.09461).

    Example:
        >>> plan = match(torch.randn(2, 197, 192), r=11, class_index=98)
        >>> plan.merge(torch.randn(2, 197, 384)).shape
        torch.Size([2, 186, 384])
    """
    if window is not None and (not keep_order or neighbour != 1 or prefix is not None):
        raise ValueError(
            f"match: window={window} with keep_order={keep_order}, neighbour={neighbour}, prefix={prefix}; "
            "expected the tokens of a scan in their order, and the most similar destination"
        )
    if distance not in DISTANCES:
        raise ValueError(f"match: distance={distance!r}; expected one of {DISTANCES}")
    if neighbour < 1:
        raise ValueError(f"match: neighbour={neighbour}; expected 1 (the most similar) or more")
    if metric.ndim != 3:
        raise ValueError(f"match: metric has shape {tuple(metric.shape)}; expected (batch, tokens, channels)")
    r, class_index = _whole("r", r), _whole("class_index", class_index)
    tokens = Tokens(metric.shape[1], class_index, prefix, grid, position, keep_order, class_position, prune)
    if isinstance(class_index, Tensor) and class_index.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_places(class_index, tokens.num)
    found, given = find_rule(rule or ("exact" if window is None else "window")), dict(features or {})
    options = {"distance": distance, "neighbour": neighbour, "window": window}
    return found.plan(metric, r, tokens, options, given.get)


def _check_places(class_index: Tensor, num_tokens: int) -> None:
    """Refuse class tokens that are not among the tokens; not under vmap, where nobody can look at numbers."""
    if torch._C._functorch.is_functorch_wrapped_tensor(class_index):
        return
    outside = ((class_index < 0) | (class_index >= num_tokens)).nonzero().flatten().tolist()
    if outside:
        found = f"{class_index[outside[0]].item()} in sample {outside[0]}"
        raise ValueError(f"match: class_index={found}; expected 0 to {num_tokens - 1} for this metric")


def _whole(name: str, value: Any) -> Any:
    """A whole number of any type as an int; a tensor of many, or None, as it is."""
    if value is None or isinstance(value, Tensor):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"match: {name}={value!r}; expected a whole number") from None
