"""Figures of the digits: what the shipped models merge, and accuracy against r."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from matplotlib.figure import Figure

from fig.record import ROOT, save
from image_task.config import DataConfig
from image_task.data import build_data
from image_task.models import load_weights
from rmeeto import MergeConfig
from rmeeto.json_file import read_json
from rmeeto.measure import merge_history, mosaic

DIGITS = ROOT / "image_task" / "exp_sh" / "digits"
WEIGHTS = DIGITS / "retrained.safetensors"
SEEDS, RS, R = (0, 1, 2), range(0, 21, 2), 12
DRAWN = (0, 2, 3, 5, 6, 8)
ARMS = ("retrained", "control")
ACCURACIES = [DIGITS / "results" / f"curve-r{r}" / "result.json" for r in RS] + [
    DIGITS / "results" / f"{arm}-seed{seed}" / "result.json" for arm in ARMS for seed in SEEDS
]


def merged_digits(path: Path) -> None:
    """Six digits, and what the shipped re-trained model makes of their tokens."""
    model = timm.create_model("vim_nano_patch2_16", merge=MergeConfig(r=R)).eval()
    load_weights(model, WEIGHTS)
    data = build_data(DataConfig(num_workers=0), img_size=16, rank=0, world_size=1, seed=0, train=False)
    images, labels = next(iter(data.eval_batches()))
    figure = Figure(figsize=(2.15 * len(DRAWN), 9.6), layout="constrained")
    axes = figure.subplots(4, len(DRAWN))
    for column, digit in zip(axes.T, DRAWN):
        image = images[(labels == digit).nonzero()[0]]
        pixels = (image[0].movedim(0, -1) * 0.5 + 0.5).clamp(0, 1).numpy()
        steps = merge_history(model, image)
        with torch.inference_mode():
            answer = int(model(image).argmax())
        groups = [np.delete(step.target[0].numpy(), model.class_index).reshape(1, 8, 8) for step in steps]
        sizes = mosaic.sizes(groups[-1])[0]
        column[0].imshow(pixels, interpolation="nearest")
        column[0].set_title(f"answer: {answer}", fontsize=13)
        for ax, group in zip(column[1:3], groups[1:]):
            ax.imshow(mosaic.paint(pixels[None].repeat(8, 1).repeat(8, 2), group)[0], interpolation="nearest")
        label = mosaic.spread(groups[-1], 1, 128, 128)
        column[3].imshow(np.log(mosaic.spread(sizes[None], 1, 128, 128)[0]), cmap="cividis", vmin=0, vmax=np.log(16))
        column[3].imshow(np.dstack([mosaic.edges(label, 1)[0]] * 3 + [mosaic.edges(label, 1)[0]]).astype(float))
        for group in np.unique(groups[-1]):
            places = np.argwhere(groups[-1][0] == group)
            y, x = places[np.abs(places - places.mean(0)).sum(1).argmin()]
            size = len(places)
            if size > 1:
                colour = "black" if size > 5 else "white"
                column[3].text(16 * x + 8, 16 * y + 8, size, ha="center", va="center", fontsize=9, color=colour)
    words = (
        "what the model sees:\n8 x 8 patches",
        f"{steps[1].num_tokens} tokens\nafter the first merge",
        f"{steps[2].num_tokens} tokens\nafter the second",
        "patches that each\ntoken stands for",
    )
    for ax, text in zip(axes[:, 0], words):
        ax.set_ylabel(text, fontsize=13)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    save(figure, path, [WEIGHTS], dpi=75)


def digits_accuracy(path: Path) -> None:
    """Accuracy against r: merged without re-training (seed 0), and the arms at r = 12 over three seeds."""
    top1 = {file.parent.name: read_json(file)["top1"] for file in ACCURACIES}
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    ax = figure.subplots()
    values = [top1[f"curve-r{r}"] for r in RS]
    ax.plot(RS, values, "o-", color="#0072B2", label="merged, training-free (seed 0)")
    for arm, name, colour, marker in (
        ("retrained", "merged, re-trained 6 epochs", "#D55E00", "s"),
        ("control", "control: dense, 6 more epochs", "#009E73", "^"),
    ):
        values = [top1[f"{arm}-seed{seed}"] for seed in SEEDS]
        x = R if arm == "retrained" else 0
        ax.plot([x] * len(values), values, marker, color=colour, label=f"{name} (3 seeds)", mfc="none")
    ax.set(xlabel="r, tokens removed by each of the two merges (65 tokens)", ylabel="top-1 on 360 digits (%)")
    ax.set_xticks(RS)
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    save(figure, path, ACCURACIES, dpi=120)
