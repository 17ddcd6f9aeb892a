"""The whole method on embedded data: dense, merged, re-trained, measured, drawn (`bash exp_sh/quickstart.sh`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python image_task/quickstart.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import timm
import torch

from image_task.data import build_data
from image_task.flags import parse
from image_task.main import build_model, run
from rmeeto import MergeConfig
from rmeeto.cli.quickstart import measure_speed, run_quickstart, run_steps
from rmeeto.measure import draw_merged, trace

WEIGHTS = Path(__file__).parent / "exp_sh" / "digits" / "dense.safetensors"
# The settings of exp_sh/digits/retrain.sh; a test compares them. The control arm trains the dense model as long.
R, EPOCHS = 12, 6
MODEL = "--model vim_nano_patch2_16 --data-set digits --num_workers 0 --batch-size 32".split()
MERGED = f"--num_prune {R} --merge_interval 2 --if_order".split()
TRAIN = (
    f"--distill True --epochs {EPOCHS} --accumulation 1 --lr 3.2e-2 --min-lr 1e-5 --schedule cosine --drop-path 0 "
    "--mixup 0 --cutmix 0 --reprob 0 --repeated_aug False"
).split()
SPEED_MODEL, SPEED_R, SPEED_BATCH, SPEED_SIZE = "vim_tiny_patch16_224", 11, 8, 224


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see `run_quickstart`."""
    return run_quickstart(argv, __doc__, "runs/quickstart", WEIGHTS, quickstart)


def quickstart(folder: Path, seed: int = 0, weights: str = str(WEIGHTS)) -> dict[str, Any]:
    """All steps; see `run_steps`."""
    return run_steps(
        folder, seed, weights, prepare=lambda _: MODEL, merged=MERGED, train=TRAIN,
        run=lambda flags: run(parse(flags)[0]), speed=speed, draw=draw,
    )  # fmt: skip


def speed() -> dict[str, Any]:
    """Images per second of a full-size model, dense and merged."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense, merged = (timm.create_model(SPEED_MODEL, merge=merge).to(device) for merge in (None, MergeConfig(r=SPEED_R)))
    images = torch.randn(SPEED_BATCH, 3, SPEED_SIZE, SPEED_SIZE, device=device)
    return measure_speed(dense, merged, images, f"{SPEED_MODEL}, {SPEED_SIZE} px")


def draw(folder: Path, flags: list[str]) -> list[int]:
    """Draw one digit of each class with its merged tokens as ``merged.png``; the model's token counts."""
    config, _, _ = parse(flags)
    model = build_model(config, config.merge, num_classes=10).eval()
    data = build_data(config.data, img_size=16, rank=0, world_size=1, seed=0, train=False)
    images, labels = next(iter(data.eval_batches()))
    chosen = torch.stack([images[(labels == digit).nonzero()[0, 0]] for digit in range(10)])
    draw_merged(chosen, trace(model, chosen), model.class_index, mean=0.5, std=0.5).savefig(folder / "merged.png")
    return model.num_tokens


if __name__ == "__main__":
    sys.exit(main())
