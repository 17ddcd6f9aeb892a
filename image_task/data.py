"""Image data: micro-batches that are a pure function of seed, epoch and their place in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from image_task.batches import EvalBatches, TrainBatches
from image_task.config import DataConfig
from image_task.datasets import load_sources
from image_task.sources import Source
from image_task.transforms import eval_transform, train_transform
from rmeeto.data import kept
from rmeeto.data.augment import build_mixup
from rmeeto.data.loading import Unread, load_batches
from rmeeto.data.sampler import (
    Split,
    local_indices,
    repeated_augmentation_indices,
    shard_indices,
    shuffled_indices,
)
from rmeeto.errors import UserError

ROUND = 256  # repeated augmentation cuts an epoch to a multiple of this, unless the data set is smaller


def build_data(
    config: DataConfig,
    *,
    img_size: int,
    rank: int,
    world_size: int,
    seed: int,
    train: bool = True,
    labels: Sequence[str] | None = None,
    accumulation: int = 1,
    device: torch.device | str = "cpu",
) -> ImageData:
    """Open a data set for training and evaluation on one rank; no image is read yet.

    Args:
        config: which images, how they are batched and augmented.
        img_size: edge of the model's square input in pixels.
        rank, world_size: which share of the data.
        seed: of the order, the augmentation and the SUBIMNET subset.
        train: False opens the evaluation images only.
        labels: names of the weights' outputs, where they are known.
        accumulation: micro-batches that a rank adds up to a step.
        device: where the batches are wanted; bytes go there and become images there.

    Raises:
        UserError: the data set cannot be opened, or its training images do not fill one batch.
    """
    train_source, eval_source = load_sources(config, seed=seed, train=train, labels=labels)
    split = Split(rank, world_size, accumulation)
    return ImageData(config, train_source, eval_source, img_size, split, seed, device)


class ImageData:
    """The training and evaluation images of one rank.

    Attributes:
        class_names, num_classes: of the data set.
        num_train, num_eval: samples over all ranks.
        batches_per_epoch: training micro-batches of one rank, the same on every rank.
        eval_order: indices of the samples in the order in which the latest `eval_batches` gave them.
    """

    def __init__(
        self,
        config: DataConfig,
        train_source: Source | None,
        eval_source: Source,
        img_size: int,
        split: Split,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        self.config, self.split, self.seed, self.device = config, split, seed, device
        self._img_size = img_size
        self.class_names = eval_source.classes
        self.num_classes = len(self.class_names)
        self.num_train = len(train_source) if train_source else 0
        self.num_eval = len(eval_source)
        self.eval_order: list[int] = []
        self._unread = Unread("image", self.num_train, config.max_unreadable)

        self._train_source = train_source
        self.batches_per_epoch = 0
        if train_source:
            _check_order(config, train_source)
            mixup = build_mixup(config, self.num_classes, config.batch_size, img_size)
            self._train_transform = train_transform(config, img_size, mixup)
            self.batches_per_epoch = self._count_batches()
        indices = shard_indices(self.num_eval, split.rank, split.world_size)
        self._eval = EvalBatches(eval_source, indices, config.batch_size, eval_transform(config, img_size))

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches start, start + 1, ... of an epoch on this rank; the ones before are never loaded.

        Images that do not fill a last batch are left out. The global random generators stay untouched.

        Yields:
            images (B, 3, H, W) float32 and targets: (B, num_classes) with mixup or cutmix, else (B,) int64.

        Raises:
            UserError: more unreadable images than `max_unreadable` allows.
        """
        numbers = range(start, self.batches_per_epoch)
        for batch, unreadable in self._load(self.batches(epoch), numbers, self.seed, epoch, self.split):
            self._unread.in_training(unreadable, stop=batch is None)
            yield self._train_transform.finish(batch, self.device)

    def batches(self, epoch: int) -> TrainBatches:
        """What a worker makes of an epoch on this rank, by number."""
        return TrainBatches(
            self._train_source,
            self.split.share(self._order(epoch), self.config.batch_size),
            self.config.batch_size,
            self._train_transform,
            key=(self.seed, epoch),
            split=self.split,
            max_skips=min(int(self.config.max_unreadable * self.num_train), self.num_train - 1),
        )

    def eval_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of the evaluation: every sample exactly once over all ranks, none twice.

        Unreadable images are left out of the batches; `report()` counts those of the latest evaluation.

        Yields:
            images (b, 3, H, W) float32, targets (b,) int64.
        """
        self.eval_order = []
        self._unread.start("eval")
        count = min(len(self._eval), self.config.max_eval_batches or len(self._eval))
        for batch, indices, unreadable in self._load(self._eval, range(count), self.split.rank, self.split.world_size):
            self._unread.in_evaluation("eval", unreadable)
            self.eval_order += indices
            if batch is not None:
                yield self._eval.transform.finish(batch, self.device)

    def contents(self) -> dict[str, list[Any]]:
        """What the training set is: by class, the number of images and a digest of their names and sizes."""
        return self._train_source.contents(self.config.data_path) if self._train_source else {}

    def report(self) -> dict[str, Any]:
        """Unreadable images of this rank: distinct ones of all epochs, those of the latest evaluation, names."""
        return self._unread.report("eval")

    def _order(self, epoch: int) -> Tensor:
        """The images of an epoch, over all ranks."""
        if self.config.local_shards:
            micro_batches = self.split.world_size * self.split.accumulation
            return local_indices(self._train_source.files(), micro_batches, epoch, seed=self.seed)
        if self.config.repeated_aug and self.config.augment:
            rounded = min(ROUND, self.num_train)
            return repeated_augmentation_indices(self.num_train, epoch, seed=self.seed, selected_round=rounded)
        return shuffled_indices(self.num_train, epoch, seed=self.seed)

    def _count_batches(self) -> int:
        size, order = self.config.batch_size, self._order(0)
        count = len(self.split.share(order, size)) // size
        if not count:
            raise UserError(
                f"{self.num_train} training images give each of {self.split.world_size} processes "
                f"{len(order) // self.split.world_size}, less than one batch of {size}; lower --batch-size."
            )
        return min(count, self.config.max_train_batches or count)

    def _load(self, batches: TrainBatches | EvalBatches, numbers: range, *key: Any) -> Iterable[Any]:
        """The batches of these numbers, which depend on nothing but the settings, the images and a key."""
        workers, pinned = self.config.num_workers, self.config.pin_mem
        load = partial(load_batches, batches, num_workers=workers, pin_memory=pinned)
        digest = batches.source.digest() if kept.KEPT.active else None
        if digest is None:
            return load(numbers)
        return kept.KEPT.through((type(batches), self.config, self._img_size, digest, *key), numbers, load)


def _check_order(config: DataConfig, source: Source) -> None:
    """Refuse an order that these images do not have."""
    if not config.local_shards:
        return
    if source.files() is None:
        raise UserError(
            f"data.local_shards, but the images of {config.data_set!r} are no tar files' (tar, wds); leave it out."
        )
    if config.repeated_aug and config.augment:
        raise UserError(
            "data.local_shards and data.repeated_aug, whose repeats of an image go to several processes; choose one."
        )
