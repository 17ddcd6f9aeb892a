"""The whole method on embedded data: dense, merged, re-trained, measured, drawn (`bash exp_sh/quickstart.sh`)."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from image_task.data import build_data
from image_task.flags import parse
from image_task.main import build_model, run
from image_task.models.weights import read_checkpoint
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.measure import benchmark, draw_merged
from rmeeto.measure.visualize import trace

WEIGHTS = Path(__file__).parent / "exp_sh" / "digits" / "dense.safetensors"
# The settings of exp_sh/digits/retrain.sh; a test compares them. The control arm trains the dense model as long.
R, EPOCHS = 12, 6
MODEL = "--model vim_nano_patch2_16 --data-set digits --num_workers 0 --batch-size 32".split()
MERGED = f"--num_prune {R} --merge_interval 2 --if_order".split()
TRAIN = (
    f"--distill True --epochs {EPOCHS} --lr 3.2e-2 --min-lr 1e-5 --schedule cosine --drop-path 0 "
    "--mixup 0 --cutmix 0 --reprob 0 --repeated_aug False"
).split()
SPEED_MODEL, SPEED_R, SPEED_BATCH, SPEED_SIZE = "vim_tiny_patch16_224", 11, 8, 224


def main(argv: Sequence[str] | None = None) -> int:
    """Run the five steps and write ``summary.json``.

    Returns:
        The exit code: 0, 2 for a user error, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__)
    parser.add_argument(
        "--output_dir", default="runs/quickstart", help="an older one is kept as <name>-1, -2, ..."
    )
    parser.add_argument("--seed", type=int, default=0, help="of the re-training")
    parser.add_argument("--weights", default=str(WEIGHTS), help="dense weights of vim_nano_patch2_16")
    args = parser.parse_args(argv)
    try:
        quickstart(Path(args.output_dir), args.seed, args.weights)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command starts anew and keeps what is there", file=sys.stderr)
        return 130
    return 0


def quickstart(folder: Path, seed: int = 0, weights: str = str(WEIGHTS)) -> dict[str, Any]:
    """Evaluate dense, merge, re-train, train the control arm, measure, draw.

    Args:
        folder: where the runs and ``summary.json`` go; an older one is moved aside.
        seed: of the re-training.
        weights: of the dense model.

    Returns:
        The summary: top-1 in percent of each arm, token counts, throughput, seconds.
    """
    began = time.perf_counter()
    read_checkpoint(Path(weights))  # before anything is moved or written
    keep_older(folder)
    folder.mkdir(parents=True)
    common = [*MODEL, "--model_pth", weights, "--seed", str(seed), "--output_dir", str(folder)]
    arms = {
        "dense": ("dense", ["--eval"]),
        "training_free": (f"merged (r = {R}), training-free", [*MERGED, "--eval"]),
        "retrained": (f"merged, re-trained {EPOCHS} epochs", [*MERGED, *TRAIN]),
        "control": (f"control: dense, {EPOCHS} more epochs", TRAIN),
    }
    top1: dict[str, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # the operators of this tiny model are too small to be shared, and waiting threads spin
    for arm, (title, flags) in arms.items():
        top1[arm] = _run([*common, *flags, "--name", arm], folder / "log.txt")["top1"]
        print(f"  {title:<34} {top1[arm]:6.2f} % top-1   {time.perf_counter() - began:5.0f} s", flush=True)
    torch.set_num_threads(threads)
    throughput = measure_speed()
    print(f"  speed: {throughput['input']}\n    {_speed_line(throughput)}", flush=True)
    counts = draw(folder, common)
    summary = {
        **top1,
        "r": R,
        "token_counts": counts,
        "throughput": throughput,
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"{folder / 'summary.json'}, {folder / 'merged.png'}: {summary['seconds']:.0f} s in all")
    return summary


def measure_speed() -> dict[str, Any]:
    """Images per second of a full-size model, dense and merged, interleaved in one process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {
        name: timm.create_model(SPEED_MODEL, merge=merge).eval().to(device)
        for name, merge in (("dense", None), ("merged", MergeConfig(r=SPEED_R)))
    }
    images = torch.randn(SPEED_BATCH, 3, SPEED_SIZE, SPEED_SIZE, device=device)
    speed = benchmark(models, images)
    rates = {name: round(speed[name].images_per_s, 1) for name in models}
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return {
        **rates,
        "ratio": round(speed["dense"].median_s / speed["merged"].median_s, 3),
        "r": SPEED_R,
        "input": f"{SPEED_MODEL}, random weights, batch {SPEED_BATCH}, {SPEED_SIZE} px, fp32, {device}{threads}",
    }


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


def keep_older(folder: Path) -> None:
    """Move an existing folder to the first free ``<name>-<n>``, and say so."""
    if not folder.exists():
        return
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}-{n}").exists())
    older = folder.with_name(f"{folder.name}-{number}")
    folder.rename(older)
    print(f"the older {folder} is now {older}")


def _run(flags: list[str], log: Path) -> dict[str, Any]:
    config, _, _ = parse(flags)
    with log.open("a") as file, contextlib.redirect_stdout(file):
        return run(config)


def _speed_line(throughput: dict[str, Any]) -> str:
    return (
        f"dense {throughput['dense']:.1f}, merged (r = {throughput['r']}) {throughput['merged']:.1f} images/s: "
        f"{throughput['ratio']:.2f} x"
    )


if __name__ == "__main__":
    sys.exit(main())
