"""A re-training step: merged student, dense teacher, bf16 autocast, AdamW; ours and on upstream's kernels."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.peers import Released
from benchmarks.gpu.setting import Setting
from rmeeto.engine.distill import DistillLoss

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
    kernels = setting.kernels(wait_s=60)
    batch = setting.batches[-1]
    table: dict[str, Any] = {
        "upstream": kernels if isinstance(kernels, str) else kernels.name,
        "batch": batch,
    }
    for name in setting.models:
        rows: dict[str, Any] = {}
        student, teacher = setting.model(name, r=R[name], drop_path_rate=0.1), setting.model(name)
        steps: dict[str, Callable] = {"ours": Step(setting, student, teacher, batch)}
        if not isinstance(kernels, str):
            peers = Released(student, kernels), Released(teacher, kernels)
            steps["upstream"] = Step(setting, *peers, batch)
        for label, step in steps.items():
            rows[f"{label}, memory"] = peak_memory(setting, step)
        if not setting.dry:
            steps["ours, graphed"] = captured(Step(setting, setting.model(name, r=R[name]), teacher, batch))
        seconds = setting.time(steps, runs=5)
        rows |= {f"{label}, ms": value * 1e3 for label, value in seconds.items()}
        rows |= {f"{label}, images/s": batch / value for label, value in seconds.items()}
        if "upstream" in seconds:
            rows["upstream / ours"] = seconds["upstream"] / seconds["ours"]
        table[name] = {"r": R[name], **rows}
        del student, teacher, steps
        gc.collect()
        if not setting.dry:
            torch.cuda.empty_cache()
    return table


def peak_memory(setting: Setting, step: Callable) -> int | None:
    """Bytes that a step allocates at its peak, weights and optimizer state included."""
    step()
    if setting.dry:
        return None
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def captured(step: Step) -> Callable[[], None]:
    """The step as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
