"""Draw what a model merges in your own clips.

python -m video_task.visualize clip.mp4 --model_pth runs/clips/retrained
python -m video_task.visualize clips/ --model videomamba_video_tiny_patch16_224 --model_pth weights.pth --r 88
"""

from __future__ import annotations

import argparse
import functools
import sys
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

if __package__ in (None, ""):  # started as `python video_task/visualize.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import numpy as np
import torch
from PIL import Image

from rmeeto.cli.chosen import Chosen
from rmeeto.cli.on_files import OnFiles, add_output, output_paths, write_output
from rmeeto.errors import UserError, shown
from rmeeto.measure.explain import Answer, check_merges, clip_sheet
from video_task.clips import Preparation, why
from video_task.data.decode import UnreadableVideo
from video_task.data.lists import VIDEOS
from video_task.main import TASK

KINDS = {"gif": (".gif",), "mp4": (".mp4",), "both": (".gif", ".mp4"), "none": ()}
RATE = 3  # frames a second: what a model sees of a clip is few frames


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add_output(parser, "runs/visualize")
    parser.add_argument("--max_edge", type=int, default=384, help="pixels of a panel, at most (default: 384)")
    parser.add_argument("--animation", choices=KINDS, default="gif", help="beside the contact sheet (default: gif)")


@torch.inference_mode()
def draw(chosen: Chosen, files: list[Path], options: argparse.Namespace) -> list[tuple[Path, str]]:
    """Write a contact sheet and an animation for each clip; the ones that could not be read, with reasons."""
    check_merges(chosen.model)
    if not 64 <= options.max_edge <= 8192:
        raise UserError(f"--max_edge {options.max_edge}; expected 64 to 8192 pixels.")
    prepare, unreadable = Preparation(chosen), []
    paths = output_paths(files, options.output, "-merged.png", options.overwrite, KINDS[options.animation])
    for file, output in zip(files, paths):
        try:
            x, frames = prepare.middle_view(file)
        except (UnreadableVideo, IndexError, ValueError) as error:
            unreadable.append((file, why(error)))
            continue
        x = x.to(chosen.device)
        top = chosen.top(chosen.model(x)[0].softmax(-1))
        answer = Answer(
            shown(file.name), chosen.name, [(shown(name), share) for _, name, share in top], chosen.labels_from,
            chosen.weights is not None,
        )  # fmt: skip
        sheet, animation = clip_sheet(chosen.model, x, _within(frames, options.max_edge), answer)
        write_output(output, functools.partial(sheet.save, format="PNG"))
        _animate(output, animation, options.animation)
        print(f"{shown(output)}: {shown(top[0][1])} {100 * top[0][2]:.1f} %", flush=True)
    return unreadable


def _within(frames: np.ndarray, most: int) -> np.ndarray:
    """Frames (T, H, H, 3) in [0, 1], made smaller where they are larger than `most`."""
    if frames.shape[1] <= most:
        return frames
    small = [
        Image.fromarray((frame * 255).astype(np.uint8)).resize((most, most), Image.Resampling.LANCZOS)
        for frame in frames
    ]
    return np.stack([np.asarray(frame) for frame in small]) / 255


def _animate(path: Path, frames: list[Image.Image], kind: str) -> None:
    if ".gif" in KINDS[kind]:
        first, *others = [frame.quantize(128) for frame in frames]
        shape = {"save_all": True, "append_images": others, "duration": 1000 // RATE, "loop": 0}
        write_output(path.with_suffix(".gif"), functools.partial(first.save, format="GIF", **shape))
    if ".mp4" in KINDS[kind]:
        write_output(path.with_suffix(".mp4"), lambda file: write_mp4(file, frames))


def write_mp4(path: Path | BinaryIO, frames: list[Image.Image]) -> None:
    """Frames of one size as an H.264 video; an odd last row or column is left out."""
    import av

    width, height = (side // 2 * 2 for side in frames[0].size)
    with av.open(str(path) if isinstance(path, Path) else path, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(RATE), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame.crop((0, 0, width, height)))))
        file.mux(stream.encode())


COMMAND = OnFiles(
    prog="python -m video_task.visualize",
    description="Draw what a model merges in your own clips: a contact sheet and an animation of the frames, their "
    "tokens in mean colours, and the tokens as tubes that keep one colour over time.",
    samples="clips",
    endings=VIDEOS,
    task=TASK,
    add_flags=_add_flags,
    work=draw,
    random=True,
)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
