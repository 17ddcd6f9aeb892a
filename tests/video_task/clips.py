"""Small clips made on the spot by the real encoders."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def moving(count: int, height: int = 48, width: int = 64, seed: int = 0) -> list[np.ndarray]:
    """A texture that moves, (H, W, 3) frames; no two frames are alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4 + 12, width // 4 + 12, 3), dtype=np.uint8)
    texture = coarse.repeat(4, axis=0).repeat(4, axis=1)
    rows = (16 + 16 * np.sin(0.3 * np.arange(count) + seed)).astype(int)
    columns = (16 + 16 * np.cos(0.2 * np.arange(count))).astype(int)
    frames = [texture[y : y + height, x : x + width].copy() for y, x in zip(rows, columns)]
    for number, frame in enumerate(frames):
        frame[: height // 4, : width // 4] = number * 37 % 256
    return frames


def encode(
    path: Path | str,
    frames: list[np.ndarray],
    codec: str = "libx264",
    *,
    rate: int | Fraction = 30,
    gop: int = 12,
    b_frames: int = 0,
    pixels: str = "yuv420p",
    milliseconds: list[int] | None = None,
    rotation: float | None = None,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
    **options: object,
) -> str:
    """Encode frames to a video file.

    Args:
        milliseconds: the time of every frame, for a variable rate.
        rotation: counterclockwise, in degrees, of the picture that is shown.

    Returns:
        The path.
    """
    defaults = {"libx264": {"preset": "veryfast"}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": 8}}
    chosen = {**defaults.get(codec, {}), **options}
    with av.open(str(path), "w", format=container, options=container_options or {}) as file:
        stream = file.add_stream(codec, rate=rate, options={k: str(v) for k, v in chosen.items()})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.gop_size, stream.max_b_frames = pixels, gop, b_frames
        stream.codec_context.thread_count = 1
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if milliseconds:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[number], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return str(path)


def decode_all(path: str) -> np.ndarray:
    """Every frame of a file in the order of a decoder that starts at the beginning, (T, H, W, 3)."""
    with av.open(path) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
