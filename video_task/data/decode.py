"""Frames of a clip by their number, from a video file or a folder of images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from rmeeto.errors import UserError

BACKENDS = ("pyav", "torchcodec")
PYAV = 18  # the oldest version that says whether a stream is interlaced
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SECONDS = 10.0  # for one file

Indices = Sequence[int] | Callable[[int], Sequence[int]]


class UnreadableVideo(Exception):
    """A clip that cannot be decoded, and why."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(os.fspath(path), reason)

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


def read_frames(
    path: str | os.PathLike,
    indices: Indices,
    *,
    seconds: float = SECONDS,
    threads: int = 1,
    backend: str = "pyav",
) -> np.ndarray:
    """Chosen frames of a clip, equal to those of a decoder that runs from its first frame to its last.

    Decoding starts at the key frame before each frame that is needed, leaves out what no other frame refers to,
    and decodes nothing twice. Frames are turned as the file's display matrix says.

    Args:
        path: a video file, or a folder of images, which are its frames in the natural order of their names.
        indices: frame numbers in any order, repeated ones too; or a function from the number of frames to them.
        seconds: after which the file is given up.
        threads: of the decoder.
        backend: "pyav", or "torchcodec" where it is installed (for video files; it knows no time limit, and its
            colours differ a little where width or height is odd).

    Returns:
        (T, H, W, 3) uint8 RGB.

    Raises:
        UnreadableVideo: missing, damaged, truncated or too slow.
        IndexError: a frame that the clip does not have, or none at all.

    Example:
        middle = read_frames("clip.mp4", lambda n: [n // 2])
    """
    choose = partial(_choose, indices)
    with _reading(path, seconds) as check_time:
        if os.path.isdir(path):
            return _read_images(_images(path), choose, check_time)
        if backend == "torchcodec":
            return _read_torchcodec(path, choose, threads)
        from video_task.data.pyav import open_clip

        with open_clip(path, seconds, check_time, threads) as clip:
            return clip.read(choose)


def num_frames(path: str | os.PathLike, *, seconds: float = SECONDS) -> int:
    """How many frames a clip really holds, whatever its header says: packets counted, or frames decoded.

    Raises:
        UnreadableVideo: as in `read_frames`.
    """
    with _reading(path, seconds) as check_time:
        if os.path.isdir(path):
            return len(_images(path))
        from video_task.data.pyav import open_clip

        with open_clip(path, seconds, check_time) as clip:
            return len(clip)


def check_backend(backend: str) -> None:
    """Refuse a decoder that is unknown or does not load here.

    Raises:
        UserError: what to install.
    """
    if backend not in BACKENDS:
        raise UserError(f"--decoder is {backend!r}; expected one of {', '.join(BACKENDS)}.")
    try:
        if backend == "pyav":
            import av

            if int(av.__version__.partition(".")[0]) < PYAV:
                raise ImportError(f"PyAV {av.__version__} is older than {PYAV}")
        else:
            import torchcodec

            if getattr(torchcodec, "ffmpeg_major_version", 0) is None:
                raise ImportError("it finds no FFmpeg libraries")
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        advice = (
            f"run `pip install 'av>={PYAV}'`"
            if backend == "pyav"
            else "install torchcodec and FFmpeg, or use pyav"
        )
        raise UserError(f"--decoder {backend} does not load ({reason}); {advice}.") from error


@contextmanager
def _reading(path: str | os.PathLike, seconds: float) -> Iterator[Callable[[], None]]:
    """Turn whatever goes wrong into UnreadableVideo; yields what raises once the time is up."""
    end = time.monotonic() + seconds

    def check_time() -> None:
        if time.monotonic() > end:
            raise TimeoutError

    try:
        yield check_time
    except (UnreadableVideo, IndexError, ImportError):
        raise
    except Exception as error:  # decoders raise nearly anything on a damaged file
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        if time.monotonic() > end:
            reason = f"not decoded within {seconds:g} s"
        raise UnreadableVideo(path, reason) from error


def _choose(indices: Indices, length: int) -> list[int]:
    chosen = [int(index) for index in (indices(length) if callable(indices) else indices)]
    if not chosen:
        raise IndexError("no frame is asked for")
    for index in chosen:
        if not 0 <= index < length:
            raise IndexError(f"frame {index} of a clip of {length} frames")
    return chosen


def _images(folder: str | os.PathLike) -> list[Path]:
    from timm.utils.misc import natural_key

    images = [path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGES]
    if not images:
        raise ValueError("a folder without images")
    return sorted(images, key=lambda path: natural_key(path.name))


def _read_images(
    images: list[Path], choose: Callable[[int], list[int]], check_time: Callable[[], None]
) -> np.ndarray:
    chosen = choose(len(images))
    frames = {}
    for index in set(chosen):
        check_time()
        try:
            with Image.open(images[index]) as image:
                frames[index] = np.asarray(image.convert("RGB"))
        except Exception as error:  # decoders raise nearly anything on a damaged file
            raise UnreadableVideo(images[index], repr(error)) from error
    return np.stack([frames[index] for index in chosen])


def _read_torchcodec(path: str | os.PathLike, choose: Callable[[int], list[int]], threads: int) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(os.fspath(path), dimension_order="NHWC", num_ffmpeg_threads=threads)
    return decoder.get_frames_at(choose(len(decoder))).data.numpy()
