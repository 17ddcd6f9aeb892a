"""A re-training step: merged student, dense teacher, bf16 autocast, AdamW; ours and on upstream's kernels."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.peers import Kernels, Released
from benchmarks.gpu.setting import Setting
from rmeeto.engine.distill import DistillLoss
from rmeeto.measure.graphs import Captured

R = {"vim_tiny": 5, "vim_small": 11, "vim_base": 11, "vim_nano": 8}


class Step:
    """One optimizer step on random images and soft targets."""

    def __init__(self, setting: Setting, student: nn.Module, teacher: nn.Module, batch: int) -> None:
        self.device = setting.device.type
        self.student = student.train()
        self.criterion = DistillLoss(teacher, 0.5)
        cuda = self.device == "cuda"
        self.optimizer = torch.optim.AdamW(student.parameters(), 1e-5, fused=cuda or None, capturable=cuda)
        self.images = setting.images(batch)
        classes = student.num_classes if hasattr(student, "num_classes") else student.model.num_classes
        self.targets = torch.rand(batch, classes, device=setting.device).softmax(-1)

    def __call__(self) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, cache_enabled=False):
            loss = self.criterion(self.images, self.student(self.images), self.targets)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def run(setting: Setting) -> dict[str, Any]:
    """Milliseconds of a step, its memory, and the ratio to upstream, of every model at the batch of the recipes."""
    kernels = setting.kernels()
    batch = setting.batches[-1]
    table: dict[str, Any] = {
        "upstream": kernels if isinstance(kernels, str) else kernels.name,
        "batch": batch,
    }
    for name in setting.models:
        rows: dict[str, Any] = {}
        steps: dict[str, Callable] = {}
        sides: dict[str, Kernels | None] = {"ours": None}
        if not isinstance(kernels, str):
            sides["upstream"] = kernels
        for who, used in sides.items():
            steps[who], rows[f"{who}, memory"] = built(setting, name, used, batch)
            if not setting.dry:  # a step of its own: a captured one keeps its gradients' memory
                steps[f"{who}, graphed"] = Captured(built(setting, name, used, batch)[0])
        seconds = setting.time(steps, runs=5)
        rows |= {f"{label}, ms": value * 1e3 for label, value in seconds.items()}
        rows |= {f"{label}, images/s": batch / value for label, value in seconds.items()}
        for mode in ("", ", graphed"):
            if "upstream" + mode in seconds:
                rows[f"upstream / ours{mode}"] = seconds["upstream" + mode] / seconds["ours" + mode]
        table[name] = {"r": R[name], **rows}
        del steps
        gc.collect()
        if not setting.dry:
            torch.cuda.empty_cache()
    return table


def built(setting: Setting, name: str, kernels: Kernels | None, batch: int) -> tuple[Step, int | None]:
    """A step, and the bytes that it allocates at its peak: its weights and optimizer state, and nobody else's."""
    before = 0 if setting.dry else torch.cuda.memory_allocated()
    models = setting.model(name, r=R[name], drop_path_rate=0.1), setting.model(name)
    step = Step(setting, *(model if kernels is None else Released(model, kernels) for model in models), batch)
    del models  # a peer keeps copies
    step()
    if setting.dry:
        return step, None
    torch.cuda.reset_peak_memory_stats()
    step()
    return step, torch.cuda.max_memory_allocated() - before
