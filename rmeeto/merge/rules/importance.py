"""`importance`: the tokens of the smallest step size go into those of a middle one; the rest is left alone."""

from __future__ import annotations

from torch import Tensor

from rmeeto.merge.plan import MergePlan, take_tokens
from rmeeto.merge.rules.rule import cost, ordered
from rmeeto.merge.similarity import normalized, similarity
from rmeeto.merge.tokens import Tokens


def groups(tokens: Tokens, r: int) -> int:
    """How many destinations there are beside r sources: half of the other tokens that may merge, rounded up."""
    return (tokens.num_free - r + 1) // 2


def groups_cost(tokens: Tokens, width: int, *, r: int, **_: object) -> int:
    """Norms, and the products of the sources with the destinations."""
    return 6 * tokens.num * width + width * r * groups(tokens, r)


def merge_least(importance: Tensor, metric: Tensor, r: int, tokens: Tokens, distance: str) -> MergePlan:
    """Each of the r least important tokens goes into the most similar of those next in importance.

    Args:
        importance: (B, F) of each token that may merge; of equal ones the lower position is the less important.
        metric, r, tokens, distance: as in `exact`.
    """
    order = importance.argsort(dim=1, stable=True)
    source, destination = order[:, :r], order[:, r : r + groups(tokens, r)]
    free = normalized(tokens.free(metric))
    scores = similarity(take_tokens(free, source), take_tokens(free, destination), distance)
    return tokens.pair(source, destination.gather(1, scores.max(dim=-1).indices))


@ordered
@cost(groups_cost)
def importance(metric: Tensor, r: int, tokens: Tokens, *, delta: Tensor, distance: str = "cosine") -> MergePlan:
    """The r tokens of smallest mean step size each go into the most similar destination.

    Args:
        metric, r, tokens, distance: as in `exact`; tokens that keep their order.
        delta: (B, L, D) step sizes of the last scan.

    A scan writes a token into its state as far as its step size lets it, so a small one says that the token matters
    little. By it tokens fall into three groups: the r smallest are sources, the next are destinations, the largest are
    kept as they are. Left open, and decided here: half of the tokens that are not sources are destinations; the mean is
    over channels and both directions, of the step size as the mixer hands it out (before its bias, which is the same
    for every token, and before softplus); pairs are chosen by the configuration's metric.

    Source: the idea of MTR (arXiv 2507.14042).
    """
    return merge_least(tokens.free(delta).float().mean(-1), metric, r, tokens, distance)
