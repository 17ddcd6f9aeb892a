"""Say what is in your own pictures, with any model.

python -m image_task.predict photos/ --model_pth runs/photos/model --json > answers.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):  # started as `python image_task/predict.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import torch
from torch import Tensor

from image_task.main import TASK
from image_task.pictures import Preparation, read_picture
from rmeeto.cli.answers import Answers, add_answer_flags
from rmeeto.cli.chosen import Chosen
from rmeeto.cli.on_files import OnFiles
from rmeeto.data.pictures import ENDINGS


@torch.inference_mode()
def predict(chosen: Chosen, files: list[Path], options: argparse.Namespace) -> list[tuple[Path, str]]:
    """Print the answer to each picture; the ones that could not be read, with reasons."""
    prepare, unreadable = Preparation(chosen), list[tuple[Path, str]]()

    def readable() -> Iterator[tuple[Path, Tensor]]:
        for file in files:
            picture = read_picture(file)
            if isinstance(picture, str):
                unreadable.append((file, picture))
            else:
                yield file, prepare(picture)

    size = min(chosen.config.data.batch_size, 32)
    with Answers(chosen, options) as answers:
        some = readable()
        while batch := list(itertools.islice(some, size)):
            x = torch.stack([image for _, image in batch]).to(chosen.device)
            shares, features = chosen.model(x).softmax(-1), answers.features(x)
            for number, (file, _) in enumerate(batch):
                answers.say(file, shares[number], features[number] if features is not None else None)
    return unreadable


COMMAND = OnFiles(
    prog="python -m image_task.predict",
    description="Say what is in your own pictures: the five likeliest classes, or embeddings.",
    samples="pictures",
    endings=ENDINGS,
    task=TASK,
    add_flags=add_answer_flags,
    work=predict,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
