"""`random`: pairs drawn by lot, the control that every other rule has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from rmeeto.merge.plan import MergePlan
from rmeeto.merge.rules.rule import cost
from rmeeto.merge.tokens import Tokens

_PRIME = 2**31 - 1  # products of two numbers below it fit int64; x -> x^5 modulo it is one to one


@cost(lambda tokens, width, **_: 0)
def random(metric: Tensor, r: int, tokens: Tokens, *, seed: int = 0) -> MergePlan:
    """r sources drawn by lot each go into a destination drawn by lot.

    Args:
        metric: (B, L, C); nothing but its shape and device is read.
        r: tokens to remove, 1 to ``tokens.limit``.
        tokens: their layout; sources and destinations are those of `exact`.
        seed: of the draw.

    The draw is a function of the seed and the number of tokens alone: the same for every sample of every batch, so that
    what an image gives does not depend on what stands beside it, and the same on every device. It is computed where the
    tokens are, in integers and without a random number generator, so that nothing waits for the device, a CUDA graph
    can hold it, and nobody's random numbers are used up. In training it is therefore the same at every step.

    Source: none; a control.
    """
    batch, device = metric.shape[0], metric.device
    sources, first = tokens.num_sources, (tokens.prefix or 0) // 2
    drawn = _draw(torch.arange(2 * sources, device=device), seed * 1_000_003 + tokens.num)
    score, pick = drawn[:sources], first + drawn[sources:] % tokens.num_destinations
    if tokens.prefix:
        score = score.scatter(0, torch.arange((tokens.prefix + 1) // 2, device=device), -1)
    return tokens.plan(score.expand(batch, -1), pick.expand(batch, -1), r)


def _draw(counter: Tensor, key: int) -> Tensor:
    """Numbers from 0 to 2^31 - 2 that look drawn by lot; different counters give different ones."""
    x = counter
    for step in range(1, 4):
        x = (x + (key + step) * 1_640_531_527 % _PRIME) % _PRIME
        square = x * x % _PRIME
        x = square * square % _PRIME * x % _PRIME
    return x
