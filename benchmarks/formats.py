"""Number formats and layouts of a model's weights on this CPU: accuracy on test images, and time beside fp32.

Accuracy: the shipped Vim of the evidence on Fashion-MNIST's 10,000 test images where `--data` has them, and that of the
digits on theirs. Time: Vim-Ti with random weights, which change none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import models, timing
from benchmarks.results import Unit
from image_task.config import DataConfig
from image_task.data import build_data
from image_task.models import load_weights
from rmeeto.doctor import has_bf16
from rmeeto.layout import BySamples, by_columns, by_onednn
from rmeeto.measure import benchmark
from rmeeto.quantize import int8

SHIPPED = Path(__file__).resolve().parents[1] / "image_task" / "exp_sh"
# What is evaluated: a model, its shipped weights, its data.
TRAINED = {
    "FASHION": ("vim_nano_patch2_28", SHIPPED / "fashion" / "vim.safetensors"),
    "digits": ("vim_nano_patch2_16", SHIPPED / "digits" / "dense.safetensors"),
}
R, BATCHES, MODEL, QUICK_MODEL = (0, 11), (1, 8), "vim_tiny_patch16_224", "vim_nano_patch2_16"


def _bf16(model: nn.Module) -> Callable[[Tensor], Tensor]:
    twin = models.in_bf16(model)
    return lambda x: twin(x.bfloat16()).float()


WAYS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "fp32": lambda model: model,
    "fp32 by columns": lambda model: by_columns(copy.deepcopy(model)),
    "fp32 by oneDNN": lambda model: by_onednn(copy.deepcopy(model)),
    "fp32 by samples": BySamples,
    "fp32 by samples and oneDNN": lambda model: BySamples(by_onednn(copy.deepcopy(model))),
    "int8": int8,
    "bf16": _bf16,
}


def units(device: torch.device, runs: int, data: Path, quick: bool = False) -> Iterator[Unit]:
    """The accuracies, then the times of each r and batch."""
    for name in ("digits",) if quick else TRAINED:
        yield Unit(name, partial(_accuracies, name, data), "accuracy")
    for r in R:
        for batch in BATCHES:
            name = QUICK_MODEL if quick else MODEL
            yield Unit(f"r = {r}, batch {batch}", partial(_times, name, r, batch, device, runs), "time")


def ways(model: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """The model in each format that this processor has itself."""
    return {name: way(model) for name, way in WAYS.items() if name != "bf16" or has_bf16()}


@torch.inference_mode()
def _accuracies(name: str, data: Path) -> Iterator[dict[str, Any]]:
    model_name, weights = TRAINED[name]
    where = {} if name == "digits" else {"data_path": str(data)}
    config = DataConfig(data_set=name, num_workers=0, batch_size=100, **where)
    model = models.create(model_name, torch.device("cpu"))
    size = model.pretrained_cfg["input_size"][-1]
    batches = build_data(config, img_size=size, rank=0, world_size=1, seed=0, train=False)
    load_weights(model, str(weights))
    found = ways(model)
    right, same, count, dense = dict.fromkeys(found, 0), dict.fromkeys(found, 0), 0, torch.empty(0)
    for images, labels in batches.eval_batches():
        count += len(labels)
        for way, function in found.items():
            answers = function(images).argmax(1)
            dense = answers if way == "fp32" else dense
            right[way] += int((answers == labels).sum())
            same[way] += int((answers == dense).sum())
    for way in found:
        shares = {"top1": 100 * right[way] / count, "answers_as_fp32": 100 * same[way] / count}
        yield {"what": f"{model_name}, {name}", "way": way, **shares, "images": count}


def _times(name: str, r: int, batch: int, device: torch.device, runs: int) -> Iterator[dict[str, Any]]:
    model = models.create(name, device, r)
    found = ways(model)
    timed = benchmark(found, models.images(model, batch, device), runs=runs)
    for way in found:
        faster, spread = timing.ratio(timed["fp32"].seconds, timed[way].seconds)
        row = {"what": f"{name}, r = {r}", "batch": batch, "way": way, "ms": 1e3 * timed[way].median_s}
        yield row | {"over_fp32": faster, "IQR": spread}
