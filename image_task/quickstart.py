"""The whole method on embedded data: dense, merged, re-trained, measured, drawn (`bash exp_sh/quickstart.sh`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python image_task/quickstart.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import timm
import torch

from image_task.data import build_data
from image_task.flags import parse
from image_task.main import build_model, run
from image_task.models.weights import read_checkpoint
from rmeeto import MergeConfig
from rmeeto.cli.quickstart import (
    make_folder,
    measure_speed,
    one_thread,
    run_arms,
    run_quickstart,
    write_summary,
)
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
    """Run the five steps and write ``summary.json``.

    Returns:
        The exit code: 0, 2 for a user error, 130 after Ctrl-C.
    """
    return run_quickstart(argv, __doc__, "runs/quickstart", WEIGHTS, quickstart)


def quickstart(folder: Path, seed: int = 0, weights: str = str(WEIGHTS)) -> dict[str, Any]:
    """Evaluate dense, merge, re-train, train the control arm, measure, draw.

    Args:
        folder: where the runs and ``summary.json`` go; an older quick start's is moved aside.
        seed: of the re-training.
        weights: of the dense model.

    Returns:
        The summary: top-1 in percent of each arm, token counts, throughput, seconds.
    """
    began = time.perf_counter()
    read_checkpoint(Path(weights))  # before anything is moved or written
    make_folder(folder, seed)
    common = [*MODEL, "--model_pth", weights, "--seed", str(seed), "--output_dir", str(folder)]
    arms = {
        "dense": ("dense", ["--eval"]),
        "training_free": (f"merged (r = {R}), training-free", [*MERGED, "--eval"]),
        "retrained": (f"merged, re-trained {EPOCHS} epochs", [*MERGED, *TRAIN]),
        "control": (f"control: dense, {EPOCHS} more epochs", TRAIN),
    }
    arms = {arm: (title, [*common, *flags]) for arm, (title, flags) in arms.items()}
    with one_thread():
        top1 = run_arms(arms, lambda flags: run(parse(flags)[0]), folder / "log.txt")
    throughput = speed()
    counts = draw(folder, common)
    summary = {**top1, "r": R, "token_counts": counts, "throughput": throughput, "seed": seed}
    return write_summary(folder, summary, began)


def speed() -> dict[str, Any]:
    """Images per second of a full-size model, dense and merged."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense, merged = (
        timm.create_model(SPEED_MODEL, merge=merge).to(device) for merge in (None, MergeConfig(r=SPEED_R))
    )
    images = torch.randn(SPEED_BATCH, 3, SPEED_SIZE, SPEED_SIZE, device=device)
    return measure_speed(dense, merged, images, f"{SPEED_MODEL}, {SPEED_SIZE} px")


def draw(folder: Path, common: list[str]) -> list[int]:
    """Draw one digit of each class with its merged tokens as ``merged.png``; the re-trained model's token counts."""
    flags = [
        *common[: common.index("--model_pth")],
        "--model_pth",
        str(folder / "retrained" / "last.pt"),
        *MERGED,
    ]
    config, _, _ = parse([*flags, "--eval"])
    model = build_model(config, config.merge, num_classes=10).eval()
    data = build_data(config.data, img_size=16, rank=0, world_size=1, seed=0, train=False)
    images, labels = next(iter(data.eval_batches()))
    chosen = torch.stack([images[(labels == digit).nonzero()[0, 0]] for digit in range(10)])
    draw_merged(chosen, trace(model, chosen), model.class_index, mean=0.5, std=0.5).savefig(
        folder / "merged.png"
    )
    return model.num_tokens


if __name__ == "__main__":
    sys.exit(main())
