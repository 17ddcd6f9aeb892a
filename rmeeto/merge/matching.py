"""Which tokens are merged into which: bipartite soft matching that keeps the order of a scan.

B batch, L tokens (class token counted), P patches (class token not counted), S sources, D destinations, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from rmeeto.merge.config import CLASS_POSITIONS, DISTANCES, MODES
from rmeeto.merge.schedule import clamp_r
from rmeeto.merge.window import Near, Triple, best_near, look_near


@dataclass(frozen=True)
class MergePlan:
    """A matching, ready to be applied to any tensor of the same tokens.

    Attributes:
        keep: (B, L - r) position, before the merge, of each token that stays.
        source: (B, r) position, before the merge, of each token that goes.
        destination: (B, r) position, after the merge, of the token that it goes into.
        class_index: position of the class token after the merge; a (B,) tensor under
            ``class_position="exact"``; None when there is none.
        prune: whether sources are dropped instead of merged.
    """

    keep: Tensor
    source: Tensor
    destination: Tensor
    class_index: int | Tensor | None
    prune: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens after the merge, the class token counted."""
        return self.keep.shape[1]

    def merge(self, x: Tensor, mode: str = "sum") -> Tensor:
        """Reduce each destination with its sources: (B, L, C) -> (B, L - r, C).

        Args:
            x: tokens before the merge.
            mode: ``sum``, ``mean``, ``amax`` or ``amin`` over a destination and all its sources.

        Raises:
            ValueError: an unknown mode, or a tensor of other tokens.
        """
        if mode not in MODES:
            raise ValueError(f"merge: mode={mode!r}; expected one of {MODES}")
        before = self.num_tokens + self.source.shape[1]
        if x.ndim != 3 or x.shape[:2] != (self.keep.shape[0], before):
            raise ValueError(
                f"merge: got a tensor of shape {tuple(x.shape)}; expected ({self.keep.shape[0]}, {before}, C)"
            )
        kept = _take(x, self.keep)
        if self.prune or self.source.shape[1] == 0:
            return kept
        index = self.destination.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        moved = _take(x, self.source)
        if mode == "sum":
            return kept.scatter_add(1, index, moved)
        return kept.scatter_reduce(1, index, moved, reduce=mode, include_self=True)

    def unmerge(self, y: Tensor) -> Tensor:
        """Give every original token the value of the token that it went into: (B, L - r, C) -> (B, L, C).

        A pruned token takes the value of its most similar destination.
        """
        if y.ndim != 3 or y.shape[:2] != self.keep.shape:
            raise ValueError(
                f"unmerge: got a tensor of shape {tuple(y.shape)}; expected {(*self.keep.shape, 'C')}"
            )
        return _take(y, self.target())

    def target(self) -> Tensor:
        """Position, after the merge, that each original token went to: (B, L)."""
        batch, kept = self.keep.shape
        target = self.keep.new_empty(batch, kept + self.source.shape[1])
        target.scatter_(1, self.keep, torch.arange(kept, device=target.device).expand(batch, -1))
        return target.scatter_(1, self.source, self.destination)


@torch.no_grad()
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
    window: Triple | None = None,
    grid: Triple | None = None,
    position: Tensor | None = None,
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
    _check(metric, class_index, distance, neighbour, class_position, prefix)
    aside = 0 if class_index is None else class_index
    near = None
    if window is not None:
        if not keep_order or neighbour != 1 or prefix is not None:
            raise ValueError(
                f"match: window={window} with keep_order={keep_order}, neighbour={neighbour}, prefix={prefix}; "
                "expected the tokens of a scan in their order, and the most similar destination"
            )
        near = look_near(window, grid, position, metric.shape[1], aside, metric.device)
    if prefix is not None:
        return _match_prefixed(metric, r, prefix, distance, neighbour, keep_order, prune)
    batch, num_tokens, _ = metric.shape
    exact = class_position == "exact"
    r = clamp_r(r, num_tokens, protected=class_index is not None)
    if r == 0:
        keep = torch.arange(num_tokens, device=metric.device).expand(batch, -1)
        empty = keep[:, :0]
        index = _per_sample(aside, batch, metric.device) if exact else aside
        return MergePlan(keep, empty, empty, None if class_index is None else index, prune)

    patches = _patch_positions(num_tokens, aside, metric.device)  # (P,) or (B, P): original positions
    a, b = patches[..., 0::2], patches[..., 1::2]
    score, pick = _best(metric, a, b, distance, neighbour, near=near)  # (B, S)
    order = score.argsort(dim=1, descending=True, stable=True)
    moved, pick = (
        order[:, :r],
        pick.gather(1, order[:, :r]),
    )  # indices into the sources, into the destinations

    if keep_order:
        kept, destination = _in_order(moved, pick, patches.shape[-1])
    else:
        num_sources = a.shape[-1]
        unmerged = order[:, r:]
        kept = torch.cat(
            [2 * unmerged, 2 * torch.arange(b.shape[-1], device=metric.device).expand(batch, -1) + 1], 1
        )
        destination = pick + (num_sources - r)

    keep, source = _lookup(patches, kept), _lookup(patches, 2 * moved)
    place, reported = _class_place(aside, r, num_tokens, a.shape[-1], keep_order, exact, moved, batch)
    at = place if isinstance(place, int) else place.unsqueeze(1)
    destination = destination + (destination >= at)
    out = torch.arange(num_tokens - r, device=metric.device).expand(batch, -1)
    is_class = out == at
    keep = F.pad(keep, (0, 1)).gather(1, (out - (out > at).long()))
    keep = torch.where(is_class, _per_sample(aside, batch, metric.device).unsqueeze(1), keep)
    return MergePlan(keep, source, destination, None if class_index is None else reported, prune)


def _match_prefixed(
    metric: Tensor, r: int, prefix: int, distance: str, neighbour: int, keep_order: bool, prune: bool
) -> MergePlan:
    batch, num_tokens, _ = metric.shape
    tokens = torch.arange(num_tokens, device=metric.device)
    class_index = 0 if prefix else None
    r = clamp_r(r, num_tokens, prefix=prefix)
    if r == 0:
        keep = tokens.expand(batch, -1)
        return MergePlan(keep, keep[:, :0], keep[:, :0], class_index, prune)
    score, pick = _best(metric, tokens[0::2], tokens[1::2], distance, neighbour, prefix)
    order = score.argsort(dim=1, descending=True, stable=True)
    moved, pick = order[:, :r], pick.gather(1, order[:, :r])
    if keep_order:
        kept, destination = _in_order(moved, pick, num_tokens)
    else:
        unmerged = 2 * order[:, r:].sort(dim=1).values
        first, destinations = tokens[:prefix].expand(batch, -1), tokens[1::2].expand(batch, -1)
        kept = torch.cat([first, unmerged[:, (prefix + 1) // 2 :], destinations[:, prefix // 2 :]], dim=1)
        destination = pick + unmerged.shape[1]
    return MergePlan(kept, 2 * moved, destination, class_index, prune)


def _in_order(moved: Tensor, pick: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Survivors in their original order, and the places in it that the moved sources go to."""
    batch, r = moved.shape
    index = torch.arange(num_tokens, device=moved.device)
    gone = torch.zeros(batch, num_tokens, dtype=torch.long, device=moved.device).scatter_(1, 2 * moved, 1)
    rank = index - gone.cumsum(1)  # place of each kept token
    # Every token writes its position at its place; the moved ones write into one spare column.
    place = rank.scatter(1, 2 * moved, num_tokens - r)
    kept = place.new_empty(batch, num_tokens - r + 1).scatter_(1, place, index.expand(batch, -1))[:, :-1]
    return kept, rank.gather(1, 2 * pick + 1)


def _best(
    metric: Tensor,
    a: Tensor,
    b: Tensor,
    distance: str,
    neighbour: int,
    prefix: int = 0,
    near: Near | None = None,
) -> tuple[Tensor, Tensor]:
    """Score and destination that each source picks, (B, S) each; fp32, so that half precision does not make ties.

    The sources and destinations among the first ``prefix`` tokens score -inf.
    """
    with torch.autocast(metric.device.type, enabled=False):
        metric = F.normalize(metric if metric.dtype == torch.float64 else metric.float(), dim=-1)
        sources, destinations = _rows(metric, a), _rows(metric, b)
        available = destinations.shape[1] - prefix // 2
        if neighbour > available:
            raise ValueError(
                f"match: neighbour={neighbour}, but there are only {available} destinations "
                f"among {metric.shape[1]} tokens; use a smaller neighbour or a smaller r"
            )
        similarity = partial(_similarity, distance=distance)
        if near is not None:
            batch = metric.shape[0]
            cell = near.cell.expand(batch, -1)
            at, to = (cell.gather(1, positions.expand(batch, -1)) for positions in (a, b))
            return best_near(sources, destinations, at, to, near, similarity)
        scores = similarity(sources, destinations)
    if prefix:
        scores[:, : (prefix + 1) // 2] = -torch.inf
        scores[:, :, : prefix // 2] = -torch.inf
    if neighbour == 1:
        score, pick = scores.max(dim=-1)
        return score, pick
    ranked = scores.argsort(dim=-1, descending=True, stable=True)[..., neighbour - 1]
    return scores.gather(-1, ranked.unsqueeze(-1)).squeeze(-1), ranked


def _similarity(sources: Tensor, destinations: Tensor, distance: str) -> Tensor:
    """(B, S, C), (B, D, C), normalised -> (B, S, D), the larger the more alike."""
    if distance == "cosine":
        return sources @ destinations.transpose(1, 2)
    if distance == "l1":
        return -torch.cdist(sources, destinations, p=1.0)
    mode = "donot_use_mm_for_euclid_dist"
    return -torch.cdist(sources, destinations, p=2.0, compute_mode=mode)


def _class_place(
    p: int | Tensor,
    r: int,
    num_tokens: int,
    num_sources: int,
    keep_order: bool,
    exact: bool,
    moved: Tensor,
    batch: int,
) -> tuple[int | Tensor, int | Tensor]:
    """Where the class token is put, and where it is said to be."""
    if keep_order and exact:
        at = _per_sample(p, batch, moved.device)
        behind = at - (2 * moved < at.unsqueeze(1)).sum(1)
        return behind, behind
    if keep_order:
        return p * (num_tokens - r) // num_tokens, p * (num_tokens - r) // num_tokens
    last = num_sources - r
    reported = p * (num_sources - r) // num_sources
    place = min(reported, last) if isinstance(reported, int) else reported.clamp(max=last)
    if exact:
        place = _per_sample(place, batch, moved.device)
    return place, place if exact else reported


def _patch_positions(num_tokens: int, class_index: int | Tensor, device: torch.device) -> Tensor:
    index = torch.arange(num_tokens - 1, device=device)
    at = class_index if isinstance(class_index, int) else class_index.unsqueeze(1)
    return index + (index >= at)


def _per_sample(index: int | Tensor, batch: int, device: torch.device) -> Tensor:
    if isinstance(index, Tensor):
        return index
    return torch.full((batch,), index, dtype=torch.long, device=device)


def _lookup(positions: Tensor, index: Tensor) -> Tensor:
    return positions[index] if positions.ndim == 1 else positions.gather(1, index)


def _rows(x: Tensor, positions: Tensor) -> Tensor:
    return x.index_select(1, positions) if positions.ndim == 1 else _take(x, positions)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _check(
    metric: Tensor,
    class_index: int | Tensor | None,
    distance: str,
    neighbour: int,
    class_position: str,
    prefix: int | None,
) -> None:
    if metric.ndim != 3:
        raise ValueError(f"match: metric has shape {tuple(metric.shape)}; expected (batch, tokens, channels)")
    if distance not in DISTANCES:
        raise ValueError(f"match: distance={distance!r}; expected one of {DISTANCES}")
    if class_position not in CLASS_POSITIONS:
        raise ValueError(f"match: class_position={class_position!r}; expected one of {CLASS_POSITIONS}")
    if prefix is not None and not (0 <= prefix <= metric.shape[1] and class_index is None):
        raise ValueError(
            f"match: prefix={prefix} with class_index={class_index}; expected 0 to {metric.shape[1]} tokens, and no "
            "class_index: a class token at the front is one of the prefix"
        )
    if neighbour < 1:
        raise ValueError(f"match: neighbour={neighbour}; expected 1 (the most similar) or more")
    if isinstance(class_index, int) and not 0 <= class_index < metric.shape[1]:
        raise ValueError(
            f"match: class_index={class_index}; expected 0 to {metric.shape[1] - 1} for this metric"
        )
    if isinstance(class_index, Tensor) and class_index.shape != metric.shape[:1]:
        raise ValueError(
            f"match: class_index has shape {tuple(class_index.shape)}; expected ({metric.shape[0]},), one per sample"
        )
