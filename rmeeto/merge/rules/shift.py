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

    The shift of a token is the L2 norm of what a layer changes it by, which in a residual block is the output of its
    mixer, there already. Left open, and decided here: one mixer's output, not a whole block's with its MLP; a
    destination is chosen as in `importance`, where the source leaves merging to the method that it is combined with.

    Source: Representation Shift (arXiv 2508.00367).
    """
    return merge_least(tokens.free(output).float().norm(dim=-1), metric, r, tokens, distance)
