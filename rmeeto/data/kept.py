"""Batches that stay in a process for the next run on the same data: what makes them takes longer than a small model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from torch import Tensor

from rmeeto.data.finish import Batch


class Kept:
    """What was made of a data set before, up to a number of bytes; what came first stays.

    Attributes:
        active: whether anything is to be kept, which costs memory.
        left: bytes of tensors that there is room for.
    """

    def __init__(self) -> None:
        self.active, self.left = False, 0
        self._items: dict[Hashable, list[Any]] = {}

    def start(self, most: int) -> None:
        """Keep up to so many bytes from now on."""
        self.active, self.left = True, most

    def through(self, key: Hashable, numbers: range, load: Callable[[range], Iterable[Any]]) -> Iterator[Any]:
        """The items of these numbers: those that are there, and those that `load` makes, which are kept.

        Args:
            key: all that an item depends on beside its number.
            numbers: in a row, as every item is kept behind the one before it.
            load: from numbers to items, tuples of a `Batch` (or None) and plain values.
        """
        items = self._items.setdefault(key, [])
        known = items[numbers.start : numbers.stop]
        yield from known
        rest = numbers[len(known) :]
        for number, item in zip(rest, load(rest)) if rest else ():
            self._keep(items, number, item)
            yield item

    def _keep(self, items: list[Any], number: int, item: Any) -> None:
        batch, *others = item
        if len(items) != number or not isinstance(batch, Batch):
            return
        size = sum(part.nbytes for part in batch if isinstance(part, Tensor))
        if size <= self.left:
            self.left -= size
            # A copy: what a worker hands over is a file in shared memory.
            items.append((Batch(*(part.clone() if isinstance(part, Tensor) else part for part in batch)), *others))


KEPT = Kept()  # of this process; rmeeto.cli.warm has room in its own
