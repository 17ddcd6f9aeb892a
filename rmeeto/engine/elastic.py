"""One set of weights for many r: every optimizer step trains at the largest, the smallest and one between."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from rmeeto.errors import UserError


class Elastic:
    """Which r a step trains at, and the model set to them; without `values` the model is left alone.

    Args:
        model: has a ``merge_config`` with one whole number r, which it keeps between the passes: evaluation is there.
        values: two or more different r, or None.
        seed: of the run; together with the number of the step it says which r lies between, so that all processes and
            a resumed run draw the same.

    Raises:
        UserError: values for a model that does not merge with one r.

    Source: the sandwich rule of universally slimmable networks, arXiv 1903.05134.
    """

    def __init__(self, model: nn.Module, values: tuple[int, ...] | None, seed: int) -> None:
        self._model, self._values, self._seed = model, sorted(values or ()), seed
        self._own = getattr(model, "merge_config", None)
        if values and (self._own is None or type(self._own.r) is not int):
            raise UserError(
                f"elastic_r={values} takes the place of one r, and the model has "
                f"{'no merge_config' if self._own is None else f'r={self._own.r!r}'}; give it a whole number"
            )

    def draw(self, step: int) -> list[int | None]:
        """The r of the passes of a step: largest, smallest, one drawn between; [None] is the model as it is."""
        if not self._values:
            return [None]
        smallest, *between, largest = self._values
        chosen = np.random.default_rng((self._seed, step)).choice(between, 1).tolist() if between else []
        return [largest, smallest, *chosen]

    @contextmanager
    def at(self, r: int | None) -> Iterator[None]:
        """The model merges with this r for a while."""
        if r is not None:
            self._model.merge_config = dataclasses.replace(self._own, r=r)
        try:
            yield
        finally:
            if r is not None:
                self._model.merge_config = self._own


def mean(losses: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each term over the passes of a micro-batch."""
    if len(losses) == 1:
        return losses[0]
    return {name: torch.stack([terms[name].detach() for terms in losses]).mean() for name in losses[0]}
