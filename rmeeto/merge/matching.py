"""`match`: a rule applied to one metric, without a model."""

from __future__ import annotations

from collections.abc import Mapping

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

    The class token is set aside; of the others (patches), even positions are sources and odd positions
    destinations. Each source picks its ``neighbour``-th most similar destination; the r best pairs merge. Ties go to
    the lower position.

    Args:
        metric: (B, L, C) tensor to measure similarity on, the class token included.
        r: tokens to remove; clamped to half of the tokens, 0 or less removes none.
        class_index: where the class token is: an int or a (B,) tensor. None: no token is protected. Then token 0 is
            set aside all the same, as the released code does, and r may reach half of all the tokens.
        distance: ``cosine``, ``l1`` or ``l2``, all on the L2-normalised metric.
        neighbour: 1 pairs each source with its best destination, 3 with its third best.
        keep_order: survivors in their original order; else unmerged sources by falling score, then destinations.
        prune: make a plan that drops the sources.
        class_position: ``proportional`` or ``exact``, see `MergeConfig`.
        prefix: the layout of Transformers instead of that of scans: no token is set aside; the first ``prefix`` tokens
            (class, distillation, registers) are sources and destinations that never merge, and stay first. Unordered,
            unmerged sources then keep their order. Takes no ``class_index``.
        window: t, h, w: a source looks only at destinations fewer than t frames, h rows and w columns away; one with
            none in its window comes last, and if it has to go all the same, goes into the token next to it in the
            sequence. None, and a window as large as the grid: at all of them. Needs ``keep_order`` and
            ``neighbour=1``.
        grid: T, H, W of the tokens before any merge, which ``window`` counts in.
        position: (B, L) cell of that grid, counted frame by frame and row by row, that each token has; None: the tokens
            fill it. After a merge it is ``position.gather(1, plan.keep)``. The class token's entry is not read.
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
    tokens = Tokens(metric.shape[1], class_index, prefix, grid, position, keep_order, class_position, prune)
    found, given = find_rule(rule or ("exact" if window is None else "window")), dict(features or {})
    options = {"distance": distance, "neighbour": neighbour, "window": window}
    return found.plan(metric, r, tokens, options, given.get)
