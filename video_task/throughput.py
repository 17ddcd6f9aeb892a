"""How fast a video model is, dense and merged, and the decoder: `python -m video_task.throughput --help`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

if __package__ in (None, ""):  # started as `python video_task/throughput.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import numpy as np

from rmeeto.cli.flags import FlagParser, converter
from rmeeto.cli.throughput import Throughput
from rmeeto.errors import UserError
from video_task.config import VideoConfig
from video_task.data.decode import BACKENDS, UnreadableVideo, check_backend, num_frames, read_frames
from video_task.data.digits import encode
from video_task.data.sampling import sparse_view
from video_task.models import ALIASES, MODELS

# A made-up video: frames, height, width, about what those of K400 have when they are stored for training.
MADE_UP = 300, 256, 340


OWN = {"num_frames": None, "tubelet_size": None, "decode": None, "decoder": None}


def _add_flags(parser: FlagParser) -> None:
    group = parser.add_argument_group("clips", "for example --num_frames 16 --decode")
    for name, what in (("num_frames", "frames of a clip"), ("tubelet_size", "frames that a token covers")):
        text = f"{what}; none: the model's"
        group.add_argument(f"--{name}", dest=f"own.{name}", type=converter(int), metavar=name.upper(), help=text)
    group.add_argument(
        "--decode",
        dest="own.decode",
        nargs="*",
        metavar="FILE",
        help="time the decoder as well, on these videos (none: a made-up one of ten seconds)",
    )
    group.add_argument("--decoder", dest="own.decoder", choices=BACKENDS, help="what decodes (default: pyav)")


def _check(options: argparse.Namespace) -> None:
    if options.decode is None:
        if options.decoder is not None:
            raise UserError("--decoder has no effect without --decode; leave it out.")
        return
    options.decoder = options.decoder or "pyav"
    check_backend(options.decoder)
    _lengths(options.decode)


def _more(options: argparse.Namespace) -> Mapping[str, Any]:
    if options.decode is None:
        return {}
    with TemporaryDirectory() as folder:
        files = options.decode
        if not files:
            files = [made_up(Path(folder) / "pan.mp4")]
        measured = measure_decoder(files, options.num_frames or 8, options.decoder, options.runs)
    ours = "a made-up video of {} frames of {} x {}".format(*MADE_UP)
    what = f"{measured['videos']} video(s)" if options.decode else ours
    print(
        f"\n{measured['decoder']}: {measured['clips_per_s']:.1f} clips/s a core "
        f"({measured['num_frames']} frames from all over {what})"
    )
    return {"decoding": {**measured, "made_up": not options.decode}}


def made_up(path: Path) -> str:
    """A camera that pans over a photograph from scikit-learn."""
    from sklearn.datasets import load_sample_image

    photo, (length, height, width) = load_sample_image("china.jpg"), MADE_UP
    turns = np.linspace(0, 4 * np.pi, length)
    rows = ((photo.shape[0] - height) * (1 + np.sin(turns)) / 2).astype(int)
    columns = ((photo.shape[1] - width) * (1 + np.cos(turns)) / 2).astype(int)
    encode(path, [photo[y : y + height, x : x + width] for y, x in zip(rows, columns)])
    return str(path)


def measure_decoder(files: Sequence[str], frames: int, decoder: str = "pyav", runs: int = 11) -> dict[str, Any]:
    """Time reading a sparsely sampled clip from each of some videos, in one thread.

    Args:
        files: of the videos.
        frames: of a clip.
        decoder: of `read_frames`.
        runs: over all files, after one that warms up.

    Returns:
        clips_per_s at the median of the runs, and what was measured.

    Raises:
        UserError: a decoder that is not there, or a video that cannot be read.
    """
    check_backend(decoder)
    seconds, lengths = [], _lengths(files)
    try:
        for _ in range(runs + 1):
            start = time.perf_counter()
            for file in files:
                read_frames(file, lambda length: sparse_view(frames, length), threads=1, backend=decoder)
            seconds.append(time.perf_counter() - start)
    except UnreadableVideo as error:
        raise UserError(f"--decode: {error}") from None
    return {
        "decoder": decoder,
        "clips_per_s": len(files) / median(seconds[1:]),
        "runs_ms": [1e3 * run for run in seconds[1:]],
        "num_frames": frames,
        "videos": len(files),
        "length": median(lengths),
    }


def _lengths(files: Sequence[str]) -> list[int]:
    try:
        return [num_frames(file) for file in files]
    except UnreadableVideo as error:
        raise UserError(f"--decode: {error}") from None


COMMAND = Throughput(
    prog="python -m video_task.throughput",
    description=(__doc__ or "").partition(":")[0] + ".",
    config=VideoConfig,
    models=MODELS,
    aliases=ALIASES,
    prefixes=("videomamba_video_", "videomamba_"),
    model="videomamba_video_tiny",
    r=(0, 40, 88),
    batch_size=(1, 8),
    samples="clips",
    add_flags=_add_flags,
    own=OWN,
    arguments=lambda options: {"num_frames": options.num_frames, "tubelet_size": options.tubelet_size},
    check=_check,
    more=_more,
)
main, parse, resolve = COMMAND.main, COMMAND.parse, COMMAND.resolve


if __name__ == "__main__":
    sys.exit(main())
