"""Clips of a video as a model sees them: whole ones by views, untrimmed ones by a sliding window."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rmeeto.cli.chosen import Chosen
from video_task.config import VideoDataConfig
from video_task.data.decode import Indices, Keep, UnreadableVideo, check_backend, iterate_frames, read_frames
from video_task.data.sampling import crop_corners, sparse_view, view_frames
from video_task.data.transforms import ViewTransform

LONGEST = 86_400.0  # seconds that a whole untrimmed video may be decoded


class Preparation:
    """From the frames of a video to what a model sees.

    Args:
        chosen: the model; its settings say how frames are chosen, resized and cropped.
    """

    def __init__(self, chosen: Chosen) -> None:
        self.config: VideoDataConfig = chosen.config.data
        check_backend(self.config.decoder)
        self.frames, *_, self.size = chosen.model.patch_embed.input_size
        cfg = chosen.model.pretrained_cfg
        if chosen.is_folder and self.config.short_side_size is None and cfg.get("crop_pct"):
            side = round(self.size / cfg["crop_pct"])
            self.config = dataclasses.replace(self.config, short_side_size=side)
        self.crops = ViewTransform(self.config, self.size, self.config.test_num_crop)
        self.middle = ViewTransform(self.config, self.size)

    def views(self, path: Path) -> Tensor:
        """The views of a video in a test: (segments x crops, 3, T, size, size).

        Raises:
            UnreadableVideo: as `read_frames`.
        """
        segments = self.config.test_num_segment

        def choose(length: int) -> list[int]:
            return [frame for segment in range(segments) for frame in self._indices(length, segment, segments)]

        frames = self._read(path, choose, self.crops.shrink)
        return torch.cat([self.crops.finish(segment) for segment in np.split(frames, segments)])

    def middle_view(self, path: Path) -> tuple[Tensor, np.ndarray]:
        """One view of a video, (1, 3, T, size, size), and the same part of its frames at their own resolution.

        Raises:
            UnreadableVideo: as `read_frames`.
        """
        frames = self._read(path, self._indices)
        height, width = frames.shape[1:3]
        edge = max(1, round(min(height, width) * self.size / self.middle.short_side))
        ((top, left),) = crop_corners(height, width, edge, 1)
        return self.middle(frames), frames[:, top : top + edge, left : left + edge] / 255

    def windows(self, path: Path, stride: int, span: int) -> Iterator[tuple[int, int, Tensor]]:
        """A window of `span` frames every `stride` frames, each frame of the video decoded once.

        Yields:
            The number of a window's first frame, how many frames of the video it covers, and (1, 3, T, size, size). A
            video shorter than a window gives one, which covers them all.

        Raises:
            UnreadableVideo: as `read_frames`.
        """
        offsets = self.offsets(span)
        held: dict[int, np.ndarray] = {}
        ready: deque[tuple[int, list[np.ndarray]]] = deque()  # until it is known whether the video covers them
        start, count, shrink = 0, 0, None

        def wanted(number: int) -> bool:
            nonlocal count
            count = number + 1
            return number < offsets[0] or _is_used(number, stride, offsets)

        for number, frame in iterate_frames(path, wanted, seconds=LONGEST):
            shrink = shrink or self.middle.shrink(*frame.shape[:2])
            if number <= offsets[0]:  # those before are for a video that ends there: its last will do
                held.clear()
            held[number] = shrink(frame)
            if number == start + offsets[-1]:
                ready.append((start, [held[start + offset] for offset in offsets]))
                start += stride
                held = {index: kept for index, kept in held.items() if index >= start}
            while ready and ready[0][0] + span <= count:
                first, frames = ready.popleft()
                yield first, span, self._finish(frames)
        if not count:
            raise UnreadableVideo(path, "it has no frames")
        if not start:
            numbers = sorted(held)
            before = [[number for number in numbers if number <= offset] for offset in offsets]
            ready.append((0, [held[(some or numbers[:1])[-1]] for some in before]))
        for first, frames in ready:
            if first == 0 or count >= span:  # of a shorter video the first is all of it
                yield first, min(span, count - first), self._finish(frames)

    def offsets(self, span: int) -> list[int]:
        """The frames of a window of `span` frames, from its first."""
        return sparse_view(self.frames, span)

    def _finish(self, frames: list[np.ndarray]) -> Tensor:
        return self.middle.finish(np.stack(frames))

    def _read(self, path: Path, choose: Indices, shrinker: Callable[..., Keep] | None = None) -> np.ndarray:
        """Chosen frames of a video, each made smaller as soon as it is decoded where that is given."""
        shrink: Keep | None = None if shrinker else np.asarray

        def keep(frame: np.ndarray) -> np.ndarray:
            nonlocal shrink
            shrink = shrink or shrinker(*frame.shape[:2])
            return shrink(frame)

        seconds, backend = self.config.decode_seconds, self.config.decoder
        return read_frames(path, choose, keep=keep, seconds=seconds, backend=backend)

    def _indices(self, length: int, segment: int = 0, segments: int = 1) -> list[int]:
        return view_frames(self.frames, self.config.stride, length, segment, segments)


def _is_used(number: int, stride: int, offsets: list[int]) -> bool:
    """Whether some window holds a frame."""
    return any(number >= offset and (number - offset) % stride == 0 for offset in offsets)


def why(error: Exception) -> str:
    """The reason of an `UnreadableVideo`, or any other error's text."""
    return str(error.args[1]) if isinstance(error, UnreadableVideo) else str(error) or repr(error)
