"""`shift`: the tokens that the last block changed least go into those that it changed more."""

from __future__ import annotations

from torch import Tensor

from rmeeto.merge.plan import MergePlan
from rmeeto.merge.rules.importance import groups_cost, merge_least
from rmeeto.merge.rules.rule import cost, ordered
from rmeeto.merge.tokens import Tokens


@ordered
@cost(groups_cost)
def shift(metric: Tensor, r: int, tokens: Tokens, *, output: Tensor, distance: str = "cosine") -> MergePlan:
    """The r tokens of smallest shift each go into the most similar destination, in the groups of `importance`.

    Args:
        metric, r, tokens, distance: as in `exact`; tokens that keep their order.
        output: (B, L, C) of the last mixer (of a Transformer, the attention): what it adds to the residual stream.

    The shift of a token is how far a layer moves it, by any distance; in a residual block that is the norm of what the
    layer adds, which is there already. Left open, and decided here: the L2 norm; of the mixer (the attention), where
    the source takes an MLP, which a Mamba block does not have; a destination is chosen as in `importance`, where the
    source leaves merging to the method that it is combined with.

    Source: Representation Shift (arXiv 2508.00367).
    """
    return merge_least(tokens.free(output).float().norm(dim=-1), metric, r, tokens, distance)
