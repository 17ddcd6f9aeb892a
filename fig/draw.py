"""Draw every figure of this folder from recorded results: `python fig/draw.py`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import timm
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from image_task.config import DataConfig  # noqa: E402
from image_task.data import build_data  # noqa: E402
from image_task.models import load_weights  # noqa: E402
from rmeeto import MergeConfig  # noqa: E402
from rmeeto.measure import draw_merged, trace  # noqa: E402

DIGITS = ROOT / "image_task" / "exp_sh" / "digits"
SEEDS = (0, 1, 2)
R = 12


def top1(run: str) -> float:
    """The recorded accuracy of a digits run, in percent."""
    return json.loads((DIGITS / "results" / run / "result.json").read_text())["top1"]


def merged_digits() -> None:
    """One digit of each class, and the tokens that the shipped re-trained model is left with."""
    model = timm.create_model("vim_nano_patch2_16", merge=MergeConfig(r=R)).eval()
    load_weights(model, DIGITS / "retrained.safetensors")
    data = build_data(DataConfig(num_workers=0), img_size=16, rank=0, world_size=1, seed=0, train=False)
    images, labels = next(iter(data.eval_batches()))
    chosen = torch.stack([images[(labels == digit).nonzero()[0, 0]] for digit in range(10)])
    figure = draw_merged(chosen, trace(model, chosen), model.class_index, mean=0.5, std=0.5)
    figure.savefig(ROOT / "fig" / "merged_digits.png", dpi=120)


def digits_accuracy() -> None:
    """Accuracy against r: merged without re-training (seed 0), and the arms at r = 12 over three seeds."""
    rs = range(0, 21, 2)
    figure, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    ax.plot(
        rs, [top1(f"curve-r{r}") for r in rs], "o-", color="#0072B2", label="merged, training-free (seed 0)"
    )
    for arm, name, colour, marker in (
        ("retrained", "merged, re-trained 6 epochs", "#D55E00", "s"),
        ("control", "control: dense, 6 more epochs", "#009E73", "^"),
    ):
        values = [top1(f"{arm}-seed{seed}") for seed in SEEDS]
        x = R if arm == "retrained" else 0
        ax.plot([x] * len(values), values, marker, color=colour, label=f"{name} (3 seeds)", mfc="none")
    ax.set(xlabel="r, tokens removed by each of the two merges (65 tokens)", ylabel="top-1 on 360 digits (%)")
    ax.set_xticks(rs)
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    figure.savefig(ROOT / "fig" / "digits_accuracy.png", dpi=120)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    merged_digits()
    digits_accuracy()
