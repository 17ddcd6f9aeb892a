"""`adjacent`: a token merges with its neighbour in the scan or not at all, in O(L), away from the class token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rmeeto.merge.plan import MergePlan
from rmeeto.merge.rules.rule import cost
from rmeeto.merge.similarity import normalized
from rmeeto.merge.tokens import Tokens

_LAST = 4.0  # more than cosines differ by: taken off, a pair comes after all others


def adjacent_cost(tokens: Tokens, width: int, **_: object) -> int:
    """Norms, and the products of each token with the next."""
    return 6 * tokens.num * width + width * (tokens.num_patches - 1)


@cost(adjacent_cost)
def adjacent(metric: Tensor, r: int, tokens: Tokens, *, zone: int = 2) -> MergePlan:
    """Each source picks the more similar of the patches before and behind it; the r best pairs merge.

    Args:
        metric: (B, L, C) tensor to measure cosine similarity on.
        r: tokens to remove, 1 to ``tokens.limit``.
        tokens: their layout.
        zone: patches on each side of the class token that are protected.

    Sources are the even patches, as in `exact`, so every source has a neighbour that stays. Of equal neighbours the one
    before is taken. The idea is that merging the neighbours of a scan, on both sides alike, keeps its sequence, and
    that the hidden states round the class token are to stay as they are. Left open, and decided here: a source goes
    into one neighbour, not half into each; the zone is 2 patches wide on each side, whatever the block; its pairs come
    last and not never, so that shapes depend on r alone; without a class token, or with a prefix (Transformers), there
    is no zone.

    Source: the idea of Sequential Token Merging (arXiv 2509.22691).
    """
    sources, destinations = tokens.split(normalized(metric))
    num, behind = sources.shape[1], destinations.shape[1]
    before = F.pad((sources[:, 1:] * destinations[:, : num - 1]).sum(-1), (1, 0), value=-torch.inf)
    after = F.pad((sources[:, :behind] * destinations).sum(-1), (0, num - behind), value=-torch.inf)
    patch = 2 * torch.arange(num, device=metric.device)
    if tokens.prefix:
        before = before.masked_fill((patch - 1 < tokens.prefix), -torch.inf)
        after = after.masked_fill((patch < tokens.prefix), -torch.inf)
    elif tokens.class_index is not None:
        at = tokens.class_index
        near = _distance(patch, at) <= zone
        before = before - _LAST * (near | (_distance(patch - 1, at) <= zone))
        after = after - _LAST * (near | (_distance(patch + 1, at) <= zone))
    score, side = torch.stack([before, after], dim=-1).max(dim=-1)
    pick = (torch.arange(num, device=metric.device) - 1 + side).clamp(0, behind - 1)
    return tokens.plan(score, pick, r)


def _distance(patch: Tensor, class_index: int | Tensor) -> Tensor:
    """How many patches further from the class token, 1 for its neighbours: (S,) -> (S,) or (B, S)."""
    at = class_index.unsqueeze(1) if isinstance(class_index, Tensor) else class_index
    return torch.where(patch < at, at - patch, patch - at + 1)
