"""Moving digits: real 8 x 8 scans from scikit-learn that cross the frame, encoded to real video files.

`python -m video_task.data.digits FOLDER` writes those of the embedded default; `FOLDER 4 2` fewer: clips of a class to
train on and to test.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from rmeeto.cli.parser import Parser, read_path, run_small
from rmeeto.errors import UserError

DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
# Those of the embedded default, which the shipped model is trained on.
EMBEDDED = {"num_train": 120, "num_val": 25, "digits": (0, 1, 4)}
MOST = 10_000  # clips of a class, whose names have four digits


def write_digits(
    folder: str | Path,
    *,
    num_train: int,
    num_val: int,
    digits: Sequence[int] = range(10),
    directions: Sequence[str] = tuple(DIRECTIONS),
    length: int = 16,
    size: int = 64,
    seed: int = 0,
) -> None:
    """Write `folder`/{train,val}/<digit>-<direction>/<number>.mp4, for `--data_set folder`.

    One frame shows the digit, but only several show the direction. Training and validation show different scans.

    Args:
        num_train, num_val: clips of each class.
        digits, directions: which classes: each digit in each direction.
        length: frames of a clip.
        size: edge of a frame in pixels, even.
        seed: of the scans, their places and their speeds; the same seed writes the same files.
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    for digit in digits:
        ours = scans.images[scans.target == digit]
        train, val = ours[: len(ours) * 4 // 5], ours[len(ours) * 4 // 5 :]
        for number, direction in enumerate(DIRECTIONS):
            if direction not in directions:
                continue
            for split, chosen, count in (("train", train, num_train), ("val", val, num_val)):
                classes = Path(folder, split, f"{digit}-{direction}")
                classes.mkdir(parents=True, exist_ok=True)
                rng = np.random.default_rng((seed, digit, number, split == "train"))
                for index in range(count):
                    scan = chosen[rng.integers(len(chosen))]
                    encode(classes / f"{index:04}.mp4", render(scan, direction, length, size, rng))


def render(scan: np.ndarray, direction: str, length: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A scan (8, 8) in 0 to 16 that moves across a black frame, (size, size, 3) uint8 each.

    Its speed, its place across the motion and where it starts are drawn; it stays inside the frame.
    """
    edge = size // 2 - size // 8
    image = Image.fromarray((scan * 15.9375).astype(np.uint8)).resize((edge, edge), Image.Resampling.BICUBIC)
    picture, room = np.asarray(image), size - edge
    travel = room * rng.uniform(0.6, 1.0)
    start, across = rng.uniform(0, room - travel), round(rng.uniform(0, room))
    down, right = DIRECTIONS[direction]
    frames = []
    for share in np.linspace(0, 1, length) if down + right > 0 else np.linspace(1, 0, length):
        along = round(start + travel * share)
        top, left = (along, across) if down else (across, along)
        frame = np.zeros((size, size, 3), np.uint8)
        frame[top : top + edge, left : left + edge] = picture[..., None]
        frames.append(frame)
    return frames


def encode(path: Path, frames: list[np.ndarray]) -> None:
    """Write frames (H, W, 3) uint8, height and width even, as an H.264 video."""
    import av

    with av.open(str(path), "w") as file:
        # Without mbtree: on frames as small as these it makes other bits in every process.
        options = {"preset": "veryfast", "crf": "18", "x264-params": "mbtree=0"}
        stream = file.add_stream("libx264", rate=16, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.gop_size = "yuv420p", 8
        stream.codec_context.thread_count = 1
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


@contextmanager
def smoke_clips() -> Iterator[str]:
    """A folder, for a while, with the clips of a smoke run: enough of two classes for a few batches on 8 processes."""
    with TemporaryDirectory() as folder:
        write_digits(folder, num_train=16, num_val=8, digits=(3, 7), directions=("right",))
        yield folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code of `run_small`."""
    parser = Parser(prog="python -m video_task.data.digits", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=read_path, help="for train/<class>/<clip>.mp4 and val/<class>/<clip>.mp4")
    for name in ("num_train", "num_val"):
        parser.add_argument(name, nargs="?", type=int, default=EMBEDDED[name], help="clips of each class")
    options = parser.parse_args(argv)
    return run_small(lambda: write_digits(**{"folder": options.folder, **EMBEDDED, **_counts(options)}))


def _counts(options: argparse.Namespace) -> dict[str, int]:
    counts = {name: getattr(options, name) for name in ("num_train", "num_val")}
    for name, count in counts.items():
        if not 1 <= count <= MOST:
            raise UserError(f"{name} {count}; expected 1 to {MOST} clips of each class.")
    return counts


if __name__ == "__main__":
    sys.exit(main())
