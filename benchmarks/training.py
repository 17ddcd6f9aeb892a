"""A re-training step with a dense teacher: forward of both, loss, backward, AdamW; on each backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.models import PARITY_IMAGES, REFERENCE, TOLERANCE, Setting, create, images, on
from benchmarks.parity import Refused, agree
from rmeeto.engine.distill import DistillLoss
from rmeeto.measure.graphs import Captured


class Step:
    """One optimizer step on random images and soft targets."""

    def __init__(self, setting: Setting, backend: str, name: str, r: int, x: Tensor) -> None:
        student, teacher = create(name, x.device, r, drop_path_rate=0.1).train(), create(name, x.device)
        self.dtype, self.x = setting.dtype, x
        self.targets = torch.rand(len(x), student.num_classes, device=x.device).softmax(-1)
        if backend == "peer":
            student, teacher = setting.on(backend, student), setting.on(backend, teacher)
        self.student, self.criterion = student, DistillLoss(teacher)
        cuda = x.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(student.parameters(), 1e-5, fused=cuda or None, capturable=cuda)

    def __call__(self) -> None:
        half = self.dtype != torch.float32
        with torch.autocast(self.x.device.type, self.dtype, enabled=half, cache_enabled=False):
            loss = self.criterion(self.x, self.student(self.x), self.targets)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def rows(name: str, batch: int, r: int, setting: Setting) -> Iterator[dict[str, Any]]:
    """Rows of an optimizer step, eager and on a GPU as a CUDA graph."""
    device = setting.device
    x = images(create(name, device), batch, device)
    steps: dict[tuple[str, str], Callable[[], None]] = {}
    parity = {}
    for backend in setting.backends:
        try:
            parity[backend] = {"gradients": _gradient_parity(name, r, setting, backend, x[:PARITY_IMAGES])}
        except Refused as reason:
            yield {"model": name, "batch": batch, "r": r, "backend": backend, "refused": str(reason)}
            continue
        forced = "auto" if backend == "peer" else backend
        steps[backend, "eager"] = on(forced, Step(setting, backend, name, r, x))
        if device.type == "cuda":  # a step of its own: a captured one keeps its gradients' memory
            steps[backend, "graphed"] = Captured(on(forced, Step(setting, backend, name, r, x)))
    found = timing.interleave(steps, device, setting.runs, setting.min_seconds) if steps else {}
    for (backend, mode), step in steps.items():
        took = found[backend, mode]
        row = {"model": name, "batch": batch, "mode": mode, "backend": backend, "r": r, **timing.times(took)}
        row["images_per_s"] = batch / took.median_s
        if backend != "peer" and ("peer", mode) in steps:
            row["over_peer"], row["over_peer_spread"] = timing.ratio(found["peer", mode].seconds, took.seconds)
        if mode == "eager":
            row["memory_bytes"] = timing.peak_memory(step, device)
        yield row | {"parity": parity[backend]}


def _gradient_parity(name: str, r: int, setting: Setting, backend: str, x: Tensor) -> float:
    if backend == REFERENCE:
        return 0.0
    flat = []
    for way in (backend, REFERENCE):
        model = create(name, setting.device, r).train()
        called = setting.on(way, model)
        called(x).float().square().sum().backward()
        owner = called if isinstance(called, nn.Module) else model
        flat.append(torch.cat([p.grad.flatten() for p in owner.parameters() if p.grad is not None]))
    return agree("gradient of the parameters", *flat, TOLERANCE)
