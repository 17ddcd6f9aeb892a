"""Batches by number: what the loader's workers run, in training and in evaluation."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset

from image_task.encoded import Drawn, EncodedBatch
from image_task.sources import Source
from image_task.transforms import Transform
from rmeeto.data.finish import Batch, Erased, batch_of
from rmeeto.data.loading import Unreadable
from rmeeto.data.sampler import Split, draw_seeds, preserved_globals, seed_globals

Sample = tuple[Tensor | Drawn, list[Erased], int]  # pixels, what is erased of them, class


class TrainBatches(Dataset):
    """The micro-batches of one epoch on one rank, each drawn from nothing but `key` and its place.

    An item is (a `Batch`, the unreadable images met). The next readable image takes the place of an unreadable one;
    after `max_skips` of them in a row the batch is None instead.
    """

    def __init__(
        self,
        source: Source,
        indices: Tensor,
        batch_size: int,
        transform: Transform,
        key: tuple[int, ...],
        split: Split,
        max_skips: int,
    ):
        self.source, self.transform = source, transform
        self.indices, self.batch_size = indices, batch_size
        self.key, self.split, self.max_skips = key, split, max_skips

    def __getitem__(self, number: int) -> tuple[Batch | EncodedBatch | None, list[Unreadable]]:
        indices = self.indices[number * self.batch_size : (number + 1) * self.batch_size].tolist()
        seeds = draw_seeds((*self.key, *self.split.place(number)), self.batch_size + 1)
        samples: list[Sample] = []
        unreadable: list[Unreadable] = []
        with preserved_globals():
            for index, sample_seeds in zip(indices, seeds):
                sample = self._next_readable(index, sample_seeds, unreadable)
                if sample is None:
                    return None, unreadable
                samples.append(sample)
        return self.transform.collate(samples, seeds[-1]), unreadable

    def _next_readable(self, index: int, seeds: list[int], unreadable: list[Unreadable]) -> Sample | None:
        for skip in range(self.max_skips + 1):
            seed_globals(seeds)
            sample = _read(self.source, (index + skip) % len(self.source), self.transform)
            if not isinstance(sample, Unreadable):
                return sample
            unreadable.append(sample)
        return None


class EvalBatches(Dataset):
    """The evaluation batches of one rank: (a `Batch` or None, sample indices, unreadable images left out)."""

    def __init__(self, source: Source, indices: Tensor, batch_size: int, transform: Transform):
        self.source, self.transform = source, transform
        self.indices, self.batch_size = indices, batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, number: int) -> tuple[Batch | None, list[int], list[Unreadable]]:
        indices = self.indices[number * self.batch_size : (number + 1) * self.batch_size].tolist()
        samples: list[Sample] = []
        kept: list[int] = []
        unreadable: list[Unreadable] = []
        for index in indices:
            sample = _read(self.source, index, self.transform)
            if isinstance(sample, Unreadable):
                unreadable.append(sample)
                continue
            samples.append(sample)
            kept.append(index)
        return batch_of(samples) if samples else None, kept, unreadable


def _read(source: Source, index: int, transform: Transform) -> Sample | Unreadable:
    """An image, decoded and transformed: what either of them cannot do makes it unreadable."""
    try:
        picture, target = source.open(index)
        return *transform.pixels(picture), target
    except Exception as error:  # decoders raise nearly anything on a damaged file
        return Unreadable(index, source.name(index), repr(error))
