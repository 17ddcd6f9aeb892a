"""Draw what a model merges in your own pictures.

python -m image_task.visualize photos/cat.jpg more/ --model_pth runs/photos/model
python -m image_task.visualize cat.jpg --model vim_tiny_patch16_224 --model_pth weights.pth --r 11
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

if __package__ in (None, ""):  # started as `python image_task/visualize.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import torch

from image_task.main import TASK
from image_task.pictures import Preparation, read_picture
from rmeeto.cli.chosen import Chosen
from rmeeto.cli.on_files import OnFiles, add_output, output_paths, write_output
from rmeeto.data.pictures import ENDINGS
from rmeeto.errors import UserError, shown
from rmeeto.measure.explain import Answer, check_merges, picture_sheet


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_output(parser, "runs/visualize")
    parser.add_argument("--max_edge", type=int, default=768, help="pixels of a panel, at most (default: 768)")


@torch.inference_mode()
def draw(chosen: Chosen, files: list[Path], options: argparse.Namespace) -> list[tuple[Path, str]]:
    """Write a sheet for each picture; the ones that could not be read, with reasons."""
    check_merges(chosen.model)
    if not 64 <= options.max_edge <= 8192:
        raise UserError(f"--max_edge {options.max_edge}; expected 64 to 8192 pixels.")
    prepare, unreadable = Preparation(chosen), []
    for file, output in zip(files, output_paths(files, options.output, "-merged.png", options.overwrite)):
        picture = read_picture(file)
        if isinstance(picture, str):
            unreadable.append((file, picture))
            continue
        x = prepare(picture)[None].to(chosen.device)
        top = chosen.top(chosen.model(x)[0].softmax(-1))
        answer = Answer(
            shown(file.name), chosen.name, [(shown(name), share) for _, name, share in top], chosen.labels_from,
            chosen.weights is not None,
        )  # fmt: skip
        sheet = picture_sheet(chosen.model, x, prepare.seen(picture, options.max_edge), answer)
        write_output(output, functools.partial(sheet.save, format="PNG"))
        print(f"{shown(output)}: {shown(top[0][1])} {100 * top[0][2]:.1f} %", flush=True)
    return unreadable


COMMAND = OnFiles(
    prog="python -m image_task.visualize",
    description="Draw what a model merges in your own pictures: its tokens as regions, after a third, two thirds and "
    "all of the merges; their sizes; where each patch merged; where the class token stands; the likeliest classes.",
    samples="pictures",
    endings=ENDINGS,
    task=TASK,
    add_flags=_add_flags,
    work=draw,
    random=True,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
