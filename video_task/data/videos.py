"""Video data: micro-batches that are a pure function of seed, epoch and their place in it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rmeeto.data.contents import by_class, of_files
from rmeeto.data.loading import Unread, load_batches
from rmeeto.data.sampler import Split, shard_indices, shuffled_indices
from rmeeto.errors import UserError
from video_task.config import VideoDataConfig
from video_task.data.batches import TrainBatches, ViewBatches
from video_task.data.decode import check_backend
from video_task.data.lists import Videos, check_data_set, load_videos
from video_task.data.sampling import view_order
from video_task.data.transforms import ClipMixup, TrainTransform, ViewTransform, build_finish

logger = logging.getLogger(__name__)


def check_data(config: VideoDataConfig, *, img_size: int, train: bool = True) -> None:
    """Refuse what no videos could make good; nothing is looked for on the disk.

    Args:
        config, img_size, train: as of `build_data`.

    Raises:
        UserError: a data set or decoder that is unknown or does not load, an augmentation that timm does not know or
            cannot draw, crops larger than the frames.
    """
    check_data_set(config)
    check_backend(config.decoder)
    ViewTransform(config, img_size)
    if train and config.augment:
        TrainTransform(config, img_size, flip=False)
        ClipMixup(config, num_classes=1, size=img_size)


def build_data(
    config: VideoDataConfig,
    *,
    img_size: int,
    rank: int,
    world_size: int,
    seed: int,
    train: bool = True,
    num_classes: int | None = None,
    labels: Sequence[str] | None = None,
    accumulation: int = 1,
    device: torch.device | str = "cpu",
) -> VideoData:
    """Open a data set for training, validation and test on one rank; no video is read yet.

    Args:
        config: which videos, how clips are drawn, batched and augmented.
        img_size: edge of the model's square input in pixels.
        rank, world_size: which share of the data.
        seed: of the order, the frames drawn and the augmentation.
        train: False opens the videos of validation and test only.
        num_classes: of lists whose classes have no names; None counts up to the largest number in them.
        labels: names of the weights' outputs, where they are known.
        accumulation: micro-batches that a rank adds up to a step.
        device: where the batches are wanted; bytes go there and become clips there.

    Raises:
        UserError: the data set or the decoder cannot be opened, or its training videos do not fill one batch.
    """
    check_backend(config.decoder)
    videos = load_videos(config, train=train, num_classes=num_classes, labels=labels)
    return VideoData(config, videos, img_size, Split(rank, world_size, accumulation), seed, device)


class VideoData:
    """The training, validation and test videos of one rank.

    Validation sees one view of a video, its middle; the test sees `views`, each a (segment, crop).

    Attributes:
        class_names, num_classes: of the data set.
        num_train, num_eval, num_test: videos over all ranks.
        batches_per_epoch: training micro-batches of one rank, the same on every rank.
        views: of a video in the test, by view number.
    """

    def __init__(
        self,
        config: VideoDataConfig,
        videos: dict[str, Videos],
        img_size: int,
        split: Split,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        self.config, self.split, self.seed, self.device = config, split, seed, device
        self.class_names = videos["val"].classes
        self.num_classes = len(self.class_names)
        self.num_train = len(videos.get("train", ()))
        self.num_eval, self.num_test = len(videos["val"]), len(videos["test"])
        self.views = view_order(config.test_num_segment, config.test_num_crop)
        self._unread = Unread("clip", self.num_train, config.max_unreadable)

        self.batches_per_epoch = 0
        if self.num_train:
            self._train = videos["train"]
            mixup = ClipMixup(config, self.num_classes, img_size) if config.mixes else None
            self._finish = build_finish(mixup)
            self._train_transform = (
                TrainTransform(config, img_size, flip=self._flips())
                if config.augment
                else ViewTransform(config, img_size)
            )
            self.batches_per_epoch = self._count_batches()
        middle, crops = ViewTransform(config, img_size), ViewTransform(config, img_size, config.test_num_crop)
        self._eval = self._view_batches(videos["val"], middle, num_segments=1)
        self._test = self._view_batches(videos["test"], crops, num_segments=config.test_num_segment)

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches start, start + 1, ... of an epoch on this rank; the ones before are never loaded.

        Videos that do not fill a last batch are left out. The global random generators stay untouched.

        Yields:
            clips (B, 3, T, H, W) float32 and targets, with B = batch_size x num_sample: (B, num_classes) with mixup
            or cutmix, else (B,) int64.

        Raises:
            UserError: more unreadable videos than `max_unreadable` allows, or `max_redraws` in a row.
        """
        order = shuffled_indices(self.num_train, epoch, seed=self.seed)
        batches = TrainBatches(
            self._train,
            self.split.share(order, self.config.batch_size),
            self.config,
            self._train_transform,
            key=(self.seed, epoch),
            split=self.split,
        )
        for batch, unreadable in self._load(batches, range(start, self.batches_per_epoch)):
            self._unread.in_training(unreadable, stop=batch is None)
            yield self._finish(batch, self.device)

    def eval_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation of this rank's share: one view of every video, each exactly once over all ranks.

        Unreadable videos are left out of the batches; `report()` counts those of the latest validation.

        Yields:
            clips (b, 3, T, H, W) float32, targets (b,) int64.
        """
        for clips, targets, _, _ in self._views(self._eval, "eval"):
            yield clips, targets

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The test of this rank's share: all views of a video come from one rank, each exactly once.

        Unreadable videos are left out, with all their views; `report()` counts those of the latest test.

        Yields:
            clips (b, 3, T, H, W) float32 with b <= batch_size; targets, video numbers and view numbers, (b,) int64.
            Scores averaged per video number are complete on this rank.
        """
        for views in self._views(self._test, "test"):
            yield from zip(*(part.split(self.config.batch_size) for part in views))

    def contents(self) -> dict[str, list[Any]]:
        """What the training set is: by class, the number of videos and a digest of their names and sizes."""
        videos = self._train
        return by_class(videos.classes, videos.targets, of_files(videos.paths, self.config.data_path))

    def report(self) -> dict[str, Any]:
        """Unreadable videos of this rank: distinct ones of all epochs, those of the latest validation and test."""
        return self._unread.report("eval", "test")

    def unreadable_videos(self) -> list[int]:
        """Numbers of the videos of this rank that the latest test could not read."""
        return self._unread.missing("test")

    def _views(self, batches: ViewBatches, name: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        self._unread.start(name)
        count = min(len(batches), self.config.max_eval_batches or len(batches))
        normalise = build_finish().normalise
        for clips, *numbers, unreadable in self._load(batches, range(count)):
            self._unread.in_evaluation(name, unreadable)
            if len(clips):
                yield normalise(clips.to(self.device, non_blocking=True)), *numbers

    def _view_batches(self, videos: Videos, transform: ViewTransform, *, num_segments: int) -> ViewBatches:
        indices = shard_indices(len(videos), self.split.rank, self.split.world_size)
        at_once = max(1, self.config.batch_size // (num_segments * transform.num_crops))
        return ViewBatches(videos, indices, self.config, transform, num_segments=num_segments, num_videos=at_once)

    def _count_batches(self) -> int:
        size, order = self.config.batch_size, shuffled_indices(self.num_train, 0, seed=self.seed)
        count = len(self.split.share(order, size)) // size
        if not count:
            raise UserError(
                f"{self.num_train} training videos give each of {self.split.world_size} processes "
                f"{self.num_train // self.split.world_size}, less than one batch of {size}; lower --batch_size."
            )
        return min(count, self.config.max_train_batches or count)

    def _flips(self) -> bool:
        if self.config.flip is not None:
            return self.config.flip
        words = {word for name in self.class_names for word in re.findall("[a-z]+", name.lower())}
        sided = self.config.data_set == "SSV2" or {"left", "right"} <= words
        if sided:
            logger.info("clips are not mirrored: the classes tell left from right (--flip overrules)")
        return not sided

    def _load(self, batches: TrainBatches | ViewBatches, numbers: range) -> Iterator[Any]:
        workers, pinned = self.config.num_workers, self.config.pin_mem
        # one batch ahead: 64 clips of 8 x 224 x 224 are 300 MB of shared memory
        return iter(load_batches(batches, numbers, num_workers=workers, pin_memory=pinned, prefetch=1))
