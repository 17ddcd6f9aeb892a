"""The whole method on embedded clips: dense, merged, re-trained, tested, measured, drawn.

`bash video_task/exp_sh/quickstart.sh` runs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python video_task/quickstart.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import timm
import torch
from PIL import Image
from torch import Tensor

from rmeeto import MergeConfig
from rmeeto.cli.quickstart import measure_speed, one_thread, run_quickstart, run_steps
from rmeeto.errors import shown
from rmeeto.measure import draw_merged, trace
from rmeeto.measure.visualize import paint
from video_task.data import build_data
from video_task.data.digits import EMBEDDED, write_digits
from video_task.flags import parse
from video_task.main import build_model, run

WEIGHTS = Path(__file__).parent / "exp_sh" / "digits" / "dense.safetensors"
# The settings of exp_sh/digits/retrain.sh; a test compares them. The control arm trains the dense model as long.
R, EPOCHS = 60, 4
MODEL = (
    "--model videomamba_video_nano_patch4_32 --tubelet_size 2 --data_set folder --num_workers 0 "
    "--batch_size 16 --input_size 24 --short_side_size 32 --test_num_segment 4 --test_num_crop 3"
).split()
MERGED = f"--num_prune {R} --merge_interval 2 --if_order".split()
TRAIN = (
    f"--distill True --epochs {EPOCHS} --warmup_epochs 0 --lr 3.2e-2 --min_lr 1e-5 --schedule cosine "
    "--layer_decay 1 --weight_decay 0.05 --drop_path 0 --num_sample 1 --augment False"
).split()
SPEED_MODEL, SPEED_R, SPEED_BATCH, SPEED_SIZE = "videomamba_video_tiny_patch16_224", 88, 1, 224
NUM_DRAWN, GIF_MS, GIF_EDGE = 4, 250, 192


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see `run_quickstart`."""
    return run_quickstart(argv, __doc__, "runs/quickstart-video", WEIGHTS, quickstart)


def quickstart(folder: Path, seed: int = 0, weights: str = str(WEIGHTS)) -> dict[str, Any]:
    """All steps; see `run_steps`. Top-1 is that of 4 x 3 views."""
    return run_steps(
        folder, seed, weights, prepare=encode, merged=MERGED, train=TRAIN,
        run=lambda flags: run(parse(flags)[0]), speed=speed, draw=draw, views="4 x 3",
    )  # fmt: skip


def encode(folder: Path) -> list[str]:
    """Encode the clips into a folder; the flags of model and data."""
    clips = folder / "clips"
    write_digits(clips, **EMBEDDED)
    print(f"  {len(list(clips.rglob('*.mp4')))} clips of moving digits encoded to {shown(clips)}", flush=True)
    return [*MODEL, "--data_path", str(clips)]


@one_thread()
def speed() -> dict[str, Any]:
    """Clips per second of a full-size model, dense and merged."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense, merged = (
        timm.create_model(SPEED_MODEL, img_size=SPEED_SIZE, merge=merge).to(device)
        for merge in (None, MergeConfig(r=SPEED_R))
    )
    frames, *_ = dense.patch_embed.input_size
    clips = torch.randn(SPEED_BATCH, 3, frames, SPEED_SIZE, SPEED_SIZE, device=device)
    return measure_speed(dense, merged, clips, f"{SPEED_MODEL}, {frames} frames of {SPEED_SIZE} px")


def draw(folder: Path, flags: list[str]) -> list[int]:
    """Draw clips with the tokens that a model merged, as ``merged.png`` (a contact sheet) and ``merged.gif``.

    Args:
        folder: where the pictures go.
        flags: of the command line: the model, its weights, the data.

    Returns:
        The model's token counts.
    """
    config, _, _ = parse(flags)
    num_classes = len(list(Path(config.data.data_path, "val").iterdir()))
    model = build_model(config, config.merge, num_classes=num_classes).eval()
    size = model.patch_embed.input_size[-1]
    data = build_data(config.data, img_size=size, rank=0, world_size=1, seed=0, train=False)
    clips, labels = (torch.cat(part) for part in zip(*data.eval_batches()))
    # One clip of each direction, the digits in turn.
    classes = [(5 * i) % num_classes for i in range(NUM_DRAWN)]
    clips = clips[[int((labels == number).nonzero()[0, 0]) for number in classes]]
    source = trace(model, clips)
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    grid = model.patch_embed.grid_size
    draw_merged(clips, source, model.class_index, grid, mean, std).savefig(folder / "merged.png")
    save_gif(folder / "merged.gif", clips, source[:, :, 1:].argmax(1), grid, mean, std)
    return model.num_tokens


def save_gif(
    path: Path,
    clips: Tensor,
    groups: Tensor,
    grid: tuple[int, ...],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """An animation: clips in the upper row, below each its merged tokens, which live on from frame to frame.

    Args:
        clips: (B, 3, T, H, W), normalised with mean and std.
        groups: (B, P) number of each patch's final token.
        grid: tubelets, rows and columns of patches, P in all.
    """
    colours = (clips.movedim(1, -1) * torch.tensor(std) + torch.tensor(mean)).clamp(0, 1).numpy()
    frames = []
    painted = [paint(clip, group.view(*grid).numpy()) for clip, group in zip(colours, groups)]
    for t in range(clips.shape[2]):
        picture = Image.new("RGB", (len(colours) * GIF_EDGE, 2 * GIF_EDGE))
        for i, pair in enumerate(zip(colours, painted)):
            for row, clip in enumerate(pair):
                tile = Image.fromarray((clip[t] * 255).astype("uint8"))
                edge = (GIF_EDGE - 4, GIF_EDGE - 4)
                picture.paste(tile.resize(edge, Image.Resampling.NEAREST), (i * GIF_EDGE + 2, row * GIF_EDGE + 2))
        frames.append(picture)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=GIF_MS, loop=0)


if __name__ == "__main__":
    sys.exit(main())
