"""`energy`: tokens with many alike merge among themselves; isolated ones are protected."""

from __future__ import annotations

import torch
from torch import Tensor

from rmeeto.merge.plan import MergePlan
from rmeeto.merge.rules.rule import cost, ordered
from rmeeto.merge.similarity import normalized
from rmeeto.merge.tokens import Tokens


def energy_cost(tokens: Tokens, width: int, **_: object) -> int:
    """Norms, and the products of all tokens that may merge with each other."""
    return 6 * tokens.num * width + width * tokens.num_free**2


@ordered
@cost(energy_cost)
def energy(metric: Tensor, r: int, tokens: Tokens, *, margin: float = 0.45, alpha: float = 1.0) -> MergePlan:
    """The 2 r tokens of highest energy merge in pairs: every other one of them goes into the most similar of the rest.

    Args:
        metric: (B, L, C) tensor to measure cosine similarity on; tokens that keep their order.
        r: tokens to remove, 1 to ``tokens.limit``.
        tokens: their layout.
        margin: cosines from here on count in full, lower ones as ``alpha (exp(cosine - margin) - 1)``.
        alpha: how much the lower ones count.

    The energy of a token is the mean of that over all tokens: high inside a large cluster, low for one that has none
    alike. Of the 2 r in falling order of energy (ties: the lower position first), places 0, 2, 4, ... are the sources.
    Left open, and decided here: the source lowers its margin from 0.9 to 0 over a Transformer's blocks; a rule does not
    know its block, and 0.45 is the middle. The similarity of a token with itself, the same for all, is counted.
    Where 2 r is one more than there are tokens, so is the number of sources than that of destinations.

    Source: PiToMe (arXiv 2405.16148).
    """
    free = normalized(tokens.free(metric))
    cosine = free @ free.mT
    below = alpha * torch.expm1(cosine - margin)
    ranked = torch.where(cosine >= margin, cosine, below).mean(-1).argsort(dim=1, descending=True, stable=True)
    source, destination = ranked[:, : 2 * r : 2], ranked[:, 1 : 2 * r : 2]
    rows = cosine.gather(1, source.unsqueeze(-1).expand(-1, -1, tokens.num_free))
    scores = rows.gather(2, destination.unsqueeze(1).expand(-1, r, -1))
    return tokens.pair(source, destination.gather(1, scores.max(dim=-1).indices))
