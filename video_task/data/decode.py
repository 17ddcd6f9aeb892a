"""Frames of a clip by their number, from a video file or a folder of images."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rmeeto.data.pictures import ENDINGS, decode, hidden, natural_key, read_file
from rmeeto.errors import UserError

if TYPE_CHECKING:
    from video_task.data.pyav import Clip

BACKENDS = ("pyav", "torchcodec")
PYAV = 18  # the oldest version that says whether a stream is interlaced
SECONDS = 10.0  # for one file
MAX_PIXELS = 1 << 25  # of a frame before it is kept, in a file or a folder
MAX_KEPT = 1 << 30  # bytes of all that is kept of a clip

Indices = Sequence[int] | Callable[[int], Sequence[int]]
Keep = Callable[[np.ndarray], np.ndarray]


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
    keep: Keep = np.asarray,
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
        keep: makes of a frame, (H, W, 3) uint8 RGB, what is kept of it, as soon as it is decoded: a smaller one, say,
            so that no clip of large frames is held.
        seconds: after which the file is given up.
        threads: of the decoder. With several of them what they say of damage is not heard.
        backend: "pyav", or "torchcodec" where it is installed (for video files; it knows no time limit, and its
            colours differ a little where width or height is odd).

    Returns:
        (T, H, W, 3) uint8 RGB; with `keep`, (T, ...) of what it makes.

    Raises:
        UnreadableVideo: missing, damaged, truncated, too slow, frames of more than MAX_PIXELS or MAX_KEPT bytes in all.
        IndexError: a frame that the clip does not have, or none at all.

    Example:
        middle = read_frames("clip.mp4", lambda n: [n // 2])
    """
    choose, keep = _bounded(indices, keep)
    with _reading(path, seconds) as check_time:
        if os.path.isdir(path):
            return np.stack(_read_images(_images(path), choose, keep, check_time))
        with _open(path, seconds, check_time, threads) as clip:
            if backend == "pyav":
                return np.stack(clip.read(choose, keep))
        return np.stack(_read_torchcodec(path, choose, keep, threads))


def iterate_frames(
    path: str | os.PathLike, wanted: Callable[[int], bool], *, seconds: float = SECONDS
) -> Iterator[tuple[int, np.ndarray]]:
    """Some frames of a clip from its first to its last, decoded once and never held together.

    Args:
        path: as in `read_frames`.
        wanted: whether a frame, by its number, is given.
        seconds: after which the file is given up.

    Yields:
        The number of a frame and its (H, W, 3) uint8 RGB.

    Raises:
        UnreadableVideo: as in `read_frames`; what came before the damage has been given by then.
    """
    with _reading(path, seconds) as check_time:
        if os.path.isdir(path):
            for number, image in enumerate(_images(path)):
                check_time()
                if wanted(number):
                    yield number, np.asarray(decode(read_file(image), MAX_PIXELS))
            return
        with _open(path, seconds, check_time) as clip:
            yield from clip.in_order(wanted)


def num_frames(path: str | os.PathLike, *, seconds: float = SECONDS) -> int:
    """How many frames a clip really holds, whatever its header says: packets counted, or frames decoded.

    Raises:
        UnreadableVideo: as in `read_frames`.
    """
    with _reading(path, seconds) as check_time:
        if os.path.isdir(path):
            return len(_images(path))
        with _open(path, seconds, check_time) as clip:
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
            f"run `pip install 'av>={PYAV}'`" if backend == "pyav" else "install torchcodec and FFmpeg, or use pyav"
        )
        raise UserError(f"--decoder {backend} does not load ({reason}); {advice}.") from error


def _open(
    path: str | os.PathLike, seconds: float, check_time: Callable[[], None], threads: int = 1
) -> AbstractContextManager[Clip]:
    from video_task.data.pyav import open_clip  # FFmpeg is loaded with the first file

    return open_clip(path, seconds, check_time, MAX_PIXELS, threads)


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


def _bounded(indices: Indices, keep: Keep) -> tuple[Callable[[int], list[int]], Keep]:
    """Both as given, but together they refuse to keep more than MAX_KEPT bytes."""
    count = 0

    def choose(length: int) -> list[int]:
        nonlocal count
        chosen = _choose(indices, length)
        count = len(chosen)
        return chosen

    def within(frame: np.ndarray) -> np.ndarray:
        kept = keep(frame)
        if count * kept.nbytes > MAX_KEPT:
            shape = " x ".join(map(str, kept.shape))
            raise ValueError(f"{count} frames of {shape} are more than {MAX_KEPT >> 20} MiB; ask for fewer")
        return kept

    return choose, within


def _images(folder: str | os.PathLike) -> list[Path]:
    """The frames of a folder in the natural order of their names, which differ in their numbers alone."""
    images = [p for p in Path(folder).iterdir() if p.suffix.lower() in ENDINGS and not hidden(p.name)]
    if not images:
        raise ValueError("a folder without images")
    kinds = sorted({re.sub(r"\d+", "#", path.stem) for path in images})
    if len(kinds) > 1 and any("#" in kind for kind in kinds):
        raise ValueError(f"a folder of several kinds of images, {', '.join(kinds[:3])}; keep the frames alone")
    if len({path.stem for path in images}) < len(images):
        raise ValueError("a folder with some frames twice, under several endings; keep one of each")
    return sorted(images, key=lambda path: natural_key(path.name))


def _read_images(
    images: list[Path], choose: Callable[[int], list[int]], keep: Keep, check_time: Callable[[], None]
) -> list[np.ndarray]:
    chosen = choose(len(images))
    frames = {}
    for index in sorted(set(chosen)):
        check_time()
        try:
            frame = np.asarray(decode(read_file(images[index]), MAX_PIXELS))
        except Exception as error:  # decoders raise nearly anything on a damaged file
            raise UnreadableVideo(images[index], str(error) or repr(error)) from error
        frames[index] = keep(frame)
    return [frames[index] for index in chosen]


def _read_torchcodec(
    path: str | os.PathLike, choose: Callable[[int], list[int]], keep: Keep, threads: int
) -> list[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(os.fspath(path), dimension_order="NHWC", num_ffmpeg_threads=threads)
    chosen = choose(len(decoder))
    frames = {index: keep(decoder.get_frame_at(index).data.numpy()) for index in sorted(set(chosen))}
    return [frames[index] for index in chosen]
