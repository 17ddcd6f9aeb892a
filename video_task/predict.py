"""Say what happens in your own clips, or along an untrimmed video.

python -m video_task.predict clips/ --model_pth runs/clips/retrained --json
python -m video_task.predict match.mp4 --model_pth runs/clips/retrained --stride 16
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python video_task/predict.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import torch

from rmeeto.cli.answers import Answers, add_answer_flags
from rmeeto.cli.chosen import Chosen
from rmeeto.cli.on_files import OnFiles
from rmeeto.errors import UserError
from video_task.clips import Preparation, why
from video_task.data.decode import UnreadableVideo
from video_task.data.lists import VIDEOS
from video_task.main import TASK

AT_ONCE = 8  # windows or views in a batch


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_answer_flags(parser)
    parser.add_argument(
        "--stride", type=int, metavar="FRAMES", help="answer for a window of the video every so many frames"
    )
    parser.add_argument(
        "--span",
        type=int,
        metavar="FRAMES",
        help="that a window covers (default: four times the model's frames)",
    )


@torch.inference_mode()
def predict(chosen: Chosen, files: list[Path], options: argparse.Namespace) -> list[tuple[Path, str]]:
    """Print the answer to each clip, or to each window; the ones that could not be read, with reasons."""
    prepare, unreadable = Preparation(chosen), []
    span = 4 * prepare.frames if options.span is None else options.span
    if options.span is not None and options.stride is None:
        raise UserError("--span has no effect without --stride: a clip is seen as a whole; leave it out.")
    if options.stride is not None and (options.stride < 1 or span < prepare.frames):
        raise UserError(
            f"--stride {options.stride} --span {span}; expected at least 1, and the model's {prepare.frames} frames."
        )
    with Answers(chosen, options) as answers:
        for file in files:
            try:
                if options.stride is None:
                    _whole(file, prepare, chosen, answers)
                else:
                    _slide(file, prepare, chosen, answers, options.stride, span)
            except (UnreadableVideo, IndexError, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                unreadable.append((file, why(error)))
    return unreadable


def _whole(file: Path, prepare: Preparation, chosen: Chosen, answers: Answers) -> None:
    views = prepare.views(file).to(chosen.device).split(AT_ONCE)
    shares = torch.cat([chosen.model(part).softmax(-1) for part in views]).mean(0)
    features = [answers.features(part) for part in views]
    answers.say(file, shares, None if features[0] is None else torch.cat(features).mean(0))


def _slide(file: Path, prepare: Preparation, chosen: Chosen, answers: Answers, stride: int, span: int) -> None:
    windows, damage = prepare.windows(file, stride, span), list[Exception]()
    while batch := list(_until_damage(itertools.islice(windows, AT_ONCE), damage)):
        x = torch.cat([clip for *_, clip in batch]).to(chosen.device)
        shares, features = chosen.model(x).softmax(-1), answers.features(x)
        for number, (start, frames, _) in enumerate(batch):
            place = {"first_frame": start, "frames": frames}
            answers.say(file, shares[number], None if features is None else features[number], **place)
    if damage:
        raise damage[0]


def _until_damage(windows: Iterator[Any], damage: list[Exception]) -> Iterator[Any]:
    """The windows up to one that cannot be read, whose reason is kept."""
    try:
        yield from windows
    except (UnreadableVideo, IndexError, ValueError) as error:
        damage.append(error)


COMMAND = OnFiles(
    prog="python -m video_task.predict",
    description="Say what happens in your own clips: the five likeliest classes over all views of the test "
    "(--test_num_segment, --test_num_crop), or along a video (--stride), each frame decoded once.",
    samples="clips",
    endings=VIDEOS,
    task=TASK,
    add_flags=_add_flags,
    work=predict,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
