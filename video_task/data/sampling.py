"""Which frames of a clip, and which crops of a frame, a view consists of."""

from __future__ import annotations

from random import Random


def sparse_frames(num_frames: int, length: int, rng: Random) -> list[int]:
    """One random frame from each of `num_frames` equal parts of a clip, to train on.

    Args:
        num_frames: T, to draw.
        length: of the clip in frames.
        rng: gives one `randint` per frame.

    Returns:
        T frame numbers, ascending; frames repeat where the clip is shorter.

    Source: temporal segment networks, arXiv 1608.00859, as VideoMamba draws them for K400.
    """
    part = (length - 1) / num_frames
    drawn = [rng.randint(round(part * i), round(part * (i + 1))) for i in range(num_frames)]
    return [min(index, length - 1) for index in drawn]


def sparse_view(num_frames: int, length: int, segment: int = 0, num_segments: int = 1) -> list[int]:
    """The same place in each of `num_frames` equal parts of a clip, to evaluate on.

    Args:
        num_frames: T, to take.
        length: of the clip in frames.
        segment: which of `num_segments` places, counted from the start of a part.
        num_segments: 1 takes the middle of the parts.

    Returns:
        T frame numbers, ascending.
    """
    part = (length - 1) / num_frames
    offset = int(part / (num_segments + 1) * (segment + 1))
    return [round(part * i) + offset for i in range(num_frames)]


def dense_frames(num_frames: int, stride: int, length: int, rng: Random) -> list[int]:
    """Every `stride`-th frame from a random start, to train on; a short clip's last frame is repeated.

    Returns:
        `num_frames` frame numbers, ascending.
    """
    return _run(rng.randint(0, _slack(num_frames, stride, length)), num_frames, stride, length)


def dense_view(num_frames: int, stride: int, length: int, segment: int = 0, num_segments: int = 1) -> list[int]:
    """Every `stride`-th frame, `num_segments` starts spread from the clip's first to its last; 1 is the middle.

    Returns:
        `num_frames` frame numbers, ascending.
    """
    slack = _slack(num_frames, stride, length)
    start = slack // 2 if num_segments == 1 else round(slack * segment / (num_segments - 1))
    return _run(start, num_frames, stride, length)


def view_frames(num_frames: int, stride: int | None, length: int, segment: int = 0, num_segments: int = 1) -> list[int]:
    """The frames of a view in a test: `dense_view`, or `sparse_view` where `stride` is None."""
    if stride is None:
        return sparse_view(num_frames, length, segment, num_segments)
    return dense_view(num_frames, stride, length, segment, num_segments)


def crop_corners(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    """Top left corners of square crops along the longer side of a frame, from its start to its end.

    Args:
        height, width: of the frame in pixels, at least `size`.
        size: edge of the crops; along the shorter side they lie in the middle.
        num_crops: 1 takes the middle.

    Returns:
        `num_crops` pairs (top, left).
    """
    across, along = (min(height, width) - size) // 2, max(height, width) - size
    starts = [int(crop * along / (num_crops - 1)) for crop in range(num_crops)] if num_crops > 1 else [along // 2]
    return [(start, across) if height > width else (across, start) for start in starts]


def view_order(num_segments: int, num_crops: int) -> list[tuple[int, int]]:
    """The views of a video in a test: (segment, crop) of view 0, 1, ..., segments outermost."""
    return [(segment, crop) for segment in range(num_segments) for crop in range(num_crops)]


def _slack(num_frames: int, stride: int, length: int) -> int:
    return max(0, length - 1 - (num_frames - 1) * stride)


def _run(start: int, num_frames: int, stride: int, length: int) -> list[int]:
    return [min(start + i * stride, length - 1) for i in range(num_frames)]
