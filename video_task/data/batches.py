"""Batches by number: what the loader's workers run, in training and in evaluation."""

from __future__ import annotations

from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from rmeeto.data.finish import Batch, Erased, batch_of
from rmeeto.data.loading import Unreadable
from rmeeto.data.sampler import Split, draw_seeds, preserved_globals, seed_globals
from video_task.config import VideoDataConfig
from video_task.data.decode import Indices, UnreadableVideo, read_frames
from video_task.data.lists import Videos
from video_task.data.sampling import dense_frames, sparse_frames, view_frames
from video_task.data.transforms import Shrink, TrainTransform, View, ViewTransform


class TrainBatches(Dataset):
    """The micro-batches of one epoch on one rank, each drawn from nothing but `key` and its place.

    An item is (a `Batch`, the unreadable clips met), with the `num_sample` views of a decoded clip next to each
    other. Clips drawn at random take the place of an unreadable one; if `max_redraws` of them are unreadable too,
    the batch is None instead.
    """

    def __init__(
        self,
        videos: Videos,
        indices: Tensor,
        config: VideoDataConfig,
        transform: TrainTransform | ViewTransform,
        key: tuple[int, ...],
        split: Split,
    ):
        self.videos, self.indices, self.config = videos, indices, config
        self.transform, self.key, self.split = transform, key, split

    def __getitem__(self, number: int) -> tuple[Batch | None, list[Unreadable]]:
        size, views = self.config.batch_size, self.config.num_sample
        indices = self.indices[number * size : (number + 1) * size].tolist()
        seeds = iter(draw_seeds((*self.key, *self.split.place(number)), size * (1 + views) + 1))
        samples: list[tuple[Tensor, list[Erased], int]] = []
        unreadable: list[Unreadable] = []
        with preserved_globals():
            for index in indices:
                rng = Random(next(seeds)[0])
                drawn = self._draw(index, rng, [next(seeds) for _ in range(views)], unreadable)
                if drawn is None:
                    return None, unreadable
                samples += [(*view, drawn[1]) for view in drawn[0]]
        return batch_of(samples, next(seeds)), unreadable

    def _draw(
        self, index: int, rng: Random, seeds: list[list[int]], unreadable: list[Unreadable]
    ) -> tuple[list[View], int] | None:
        config = self.config

        def choose(length: int) -> list[int]:
            if config.dense:
                return dense_frames(config.num_frames, config.sampling_rate, length, rng)
            return sparse_frames(config.num_frames, length, rng)

        for _ in range(config.max_redraws + 1):
            made = _read(self.videos, index, choose, config, _Augmented(self.transform, seeds))
            if not isinstance(made, Unreadable):
                return made, int(self.videos.targets[index])
            unreadable.append(made)
            index = rng.randrange(len(self.videos))
        return None


class ViewBatches(Dataset):
    """The evaluation batches of one rank: all views of a few videos at a time.

    An item is (clips (V, 3, T, H, W) uint8, targets (V,), video numbers (V,), view numbers (V,), unreadable videos,
    which have no views in it). The views of a video are `num_segments` x the transform's crops, segments outermost.
    """

    def __init__(
        self,
        videos: Videos,
        indices: Tensor,
        config: VideoDataConfig,
        transform: ViewTransform,
        *,
        num_segments: int,
        num_videos: int,
    ):
        self.videos, self.indices, self.config = videos, indices, config
        self.transform, self.num_segments, self.num_videos = transform, num_segments, num_videos

    def __len__(self) -> int:
        return -(-len(self.indices) // self.num_videos)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Unreadable]]:
        indices = self.indices[number * self.num_videos : (number + 1) * self.num_videos].tolist()
        clips: list[View] = []
        read: list[int] = []
        unreadable: list[Unreadable] = []
        for index in indices:
            segments = _Segments(self.transform, self.num_segments)
            made = _read(self.videos, index, self._choose, self.config, segments)
            if isinstance(made, Unreadable):
                unreadable.append(made)
                continue
            clips += made
            read.append(index)
        views = self.num_segments * self.transform.num_crops
        ids = torch.tensor(read, dtype=torch.int64).repeat_interleave(views)
        targets = torch.from_numpy(self.videos.targets)[ids]
        return (
            default_collate([clip for clip, _ in clips]) if clips else torch.empty(0),
            targets,
            ids,
            torch.arange(views).repeat(len(read)),
            unreadable,
        )

    def _choose(self, length: int) -> list[int]:
        clip = self.config.num_frames, self.config.stride, length
        return [frame for at in range(self.num_segments) for frame in view_frames(*clip, at, self.num_segments)]


class _Augmented:
    """The augmented views of a clip, one a seed; of a decoded frame only their crops are kept."""

    def __init__(self, transform: TrainTransform | ViewTransform, seeds: list[list[int]]):
        self.transform, self.seeds = transform, seeds
        self.crops: list[Shrink] = []

    def keep(self, frame: np.ndarray) -> np.ndarray:
        if not self.crops:
            self.size = frame.shape[:2]
            self.crops = [self._crop(seed) for seed in self.seeds]
        return np.stack([crop(frame) for crop in self.crops])

    def finish(self, frames: np.ndarray) -> list[View]:
        views = []
        for number, seed in enumerate(self.seeds):
            self._crop(seed)  # drawn again, so that the draws after it follow
            views += self.transform.views(frames[:, number])
        return views

    def _crop(self, seed: list[int]) -> Shrink:
        seed_globals(seed)
        return self.transform.shrink(*self.size)


class _Segments:
    """The crops of a video's segments; of a decoded frame the resized one is kept."""

    def __init__(self, transform: ViewTransform, num_segments: int):
        self.transform, self.num_segments = transform, num_segments

    def keep(self, frame: np.ndarray) -> np.ndarray:
        return self.transform.shrink(*frame.shape[:2])(frame)

    def finish(self, frames: np.ndarray) -> list[View]:
        segments = np.split(frames, self.num_segments)
        return [view for segment in segments for view in self.transform.views(segment)]


def _read(
    videos: Videos, index: int, choose: Indices, config: VideoDataConfig, views: _Augmented | _Segments
) -> list[View] | Unreadable:
    """The views of a video: what the decoder or the transform cannot do makes it unreadable."""
    path = videos.path(index)
    limits = {"seconds": config.decode_seconds, "backend": config.decoder}
    try:
        return views.finish(read_frames(path, choose, keep=views.keep, **limits))
    except UnreadableVideo as error:
        return Unreadable(index, path, error.args[1] if error.args[0] == path else str(error))
    except Exception as error:
        return Unreadable(index, path, repr(error))
