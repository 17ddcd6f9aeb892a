"""`exact`, the paper's rule: each source is paired with its most similar destination, and the best pairs merge."""

from __future__ import annotations

import torch
from torch import Tensor

from rmeeto.merge.plan import MergePlan
from rmeeto.merge.similarity import normalized, similarity
from rmeeto.merge.tokens import Tokens

SCORES = 1 << 22  # of a sample that are in memory at once: all of an image's; of long inputs a block of sources'


def exact(metric: Tensor, r: int, tokens: Tokens, *, distance: str = "cosine", neighbour: int = 1) -> MergePlan:
    """Each source picks its ``neighbour``-th most similar destination; the r best pairs merge.

    Args:
        metric: (B, L, C) tensor to measure similarity on.
        r: tokens to remove, 1 to ``tokens.limit``.
        tokens: their layout.
        distance: ``cosine``, ``l1`` or ``l2``, all on the L2-normalised metric.
        neighbour: 1 pairs each source with its best destination, 3 with its third best.

    Source: R-MeeTo (arXiv 2412.12496), section 3; the bipartite matching is ToMe's (arXiv 2210.09461).
    """
    sources, destinations = tokens.split(normalized(metric))
    found, step = [], max(1, SCORES // max(1, destinations.shape[1]))
    for first in range(0, sources.shape[1], step):
        scores = similarity(sources[:, first : first + step], destinations, distance)
        found.append(tokens.best(scores, neighbour, first))
    score, pick = found[0] if len(found) == 1 else (torch.cat(parts, dim=1) for parts in zip(*found))
    return tokens.plan(score, pick, r)
