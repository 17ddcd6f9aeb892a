"""`window`: the exact rule within a neighbourhood in space and time, at a cost of O(L) instead of O(L^2)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from rmeeto.merge.plan import MergePlan
from rmeeto.merge.rules.exact import exact
from rmeeto.merge.rules.rule import all_pairs, cost
from rmeeto.merge.similarity import normalized, similarity
from rmeeto.merge.tiles import Triple, best_near, covers, num_pairs
from rmeeto.merge.tokens import Tokens


def window_cost(tokens: Tokens, width: int, *, window: Triple, **_: object) -> int:
    """Norms, and the products of the pairs that tiles compare."""
    assert tokens.grid is not None
    pairs = num_pairs(window, tokens.grid, tokens.num)
    return all_pairs(tokens, width) if pairs is None else 6 * tokens.num * width + 2 * width * pairs


@cost(window_cost)
def window(
    metric: Tensor, r: int, tokens: Tokens, *, cell: Tensor, window: Triple, distance: str = "cosine"
) -> MergePlan:
    """Each source picks the most similar destination near it; one with none near comes last.

    Args:
        metric, r, tokens: as in `exact`; the tokens of a scan, in their order, with a grid.
        cell: (B, L) or (L,) which cell of the grid each token stands at, ascending but for the class token's.
        window: t, h, w: a source looks only at destinations fewer than t frames, h rows and w columns away. One with
            none there, if it has to go all the same, goes into the token next to it in the sequence. A window as
            large as the grid: at all of them.
        distance: as in `exact`.

    Raises:
        ValueError: tokens that are not in the order of a scan.
    """
    if not tokens.keep_order or tokens.prefix is not None or tokens.grid is None:
        raise ValueError(
            f"match: window={window} with keep_order={tokens.keep_order}, prefix={tokens.prefix}, "
            f"grid={tokens.grid}; expected the tokens of a scan in their order, and their grid"
        )
    if covers(window, tokens.grid):
        return exact(metric, r, tokens, distance=distance)
    sources, destinations = tokens.split(normalized(metric))
    at, to = tokens.split(cell.expand(metric.shape[0], -1))
    measure = partial(similarity, distance=distance)
    score, pick = best_near(sources, destinations, at, to, window, tokens.grid, measure)
    return tokens.plan(score, pick, r)
