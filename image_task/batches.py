"""Batches by number: what the loader's workers run, in training and in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import Mixup
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from image_task.sources import Source
from rmeeto.data.loading import Unreadable
from rmeeto.data.sampler import Split, draw_seeds, preserved_globals, seed_globals


class TrainBatches(Dataset):
    """The micro-batches of one epoch on one rank, each drawn from nothing but `key` and its place.

    An item is (images (B, 3, H, W), targets, the unreadable images met). The next readable image takes the
    place of an unreadable one; after `max_skips` of them in a row the images are None instead.
    """

    def __init__(
        self,
        source: Source,
        indices: Tensor,
        batch_size: int,
        transform: Any,
        mixup: Mixup | None,
        key: tuple[int, ...],
        split: Split,
        max_skips: int,
    ):
        self.source, self.transform, self.mixup = source, transform, mixup
        self.indices, self.batch_size = indices, batch_size
        self.key, self.split, self.max_skips = key, split, max_skips

    def __getitem__(self, number: int) -> tuple[Tensor | None, Tensor | None, list[Unreadable]]:
        indices = self.indices[number * self.batch_size : (number + 1) * self.batch_size].tolist()
        seeds = draw_seeds((*self.key, *self.split.place(number)), self.batch_size + 1)
        images, targets, unreadable = [], [], []
        with preserved_globals():
            for index, sample_seeds in zip(indices, seeds):
                sample = self._next_readable(index, sample_seeds, unreadable)
                if sample is None:
                    return None, None, unreadable
                images.append(sample[0])
                targets.append(sample[1])
            # default_collate: in a worker it stacks into shared memory, which saves a copy
            images, targets = default_collate(images), torch.tensor(targets)
            if self.mixup:
                seed_globals(seeds[-1])
                images, targets = self.mixup(images, targets)
        return images, targets, unreadable

    def _next_readable(
        self, index: int, seeds: list[int], unreadable: list[Unreadable]
    ) -> tuple[Tensor, int] | None:
        for skip in range(self.max_skips + 1):
            seed_globals(seeds)
            sample = _read(self.source, (index + skip) % len(self.source), self.transform)
            if not isinstance(sample, Unreadable):
                return sample
            unreadable.append(sample)
        return None


class EvalBatches(Dataset):
    """The evaluation batches of one rank: (images, targets, sample indices, unreadable images left out)."""

    def __init__(self, source: Source, indices: Tensor, batch_size: int, transform: Any):
        self.source, self.transform = source, transform
        self.indices, self.batch_size = indices, batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, list[int], list[Unreadable]]:
        indices = self.indices[number * self.batch_size : (number + 1) * self.batch_size].tolist()
        images, targets, kept, unreadable = [], [], [], []
        for index in indices:
            sample = _read(self.source, index, self.transform)
            if isinstance(sample, Unreadable):
                unreadable.append(sample)
                continue
            images.append(sample[0])
            targets.append(sample[1])
            kept.append(index)
        batch = default_collate(images) if images else torch.empty(0)
        return batch, torch.tensor(targets), kept, unreadable


def _read(source: Source, index: int, transform: Any) -> tuple[Tensor, int] | Unreadable:
    """An image, decoded and transformed: what either of them cannot do makes it unreadable."""
    try:
        image, target = source.read(index)
        return transform(image), target
    except Exception as error:  # decoders raise nearly anything on a damaged file
        return Unreadable(index, source.name(index), repr(error))
