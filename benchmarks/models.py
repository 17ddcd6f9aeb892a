"""Whole models, and whole training steps: dense and merged, on each backend, eager, compiled and graphed."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import timm
import torch
from torch import Tensor, nn

import image_task.models  # noqa: F401  registers the models with timm
from benchmarks import timing
from benchmarks.parity import Refused, agree
from rmeeto import MergeConfig
from rmeeto.engine.distill import DistillLoss
from rmeeto.measure import benchmark, count_flops
from rmeeto.measure.speed import _own_code

REFERENCE = (
    "torch"  # PyTorch's operators and the tidy loop, which the operators' tests hold against the definitions
)
TOLERANCE, TOLERANCE_BF16 = 1e-3, 2e-2
# Two images: in bf16 merged models are compared in fp32 alone, because another rounding makes other pairs.
PARITY_IMAGES = 2


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Run every operator that has this backend on it."""
    before = os.environ.get("RMEETO_BACKEND")
    os.environ["RMEETO_BACKEND"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["RMEETO_BACKEND"]
        else:
            os.environ["RMEETO_BACKEND"] = before


def on(backend: str, way: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run on a backend."""

    def call(*arguments: Any) -> Any:
        with forced(backend):
            return way(*arguments)

    return call


def create(name: str, device: torch.device, r: int = 0, **arguments: Any) -> nn.Module:
    """A registered model without trained weights, which change no time; the same each time."""
    torch.manual_seed(0)
    return timm.create_model(name, merge=MergeConfig(r=r) if r else None, **arguments).eval().to(device)


def merged(model: nn.Module, r: int) -> nn.Module:
    """The model merged, on the same weights."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, shared)
    twin.merge_config = MergeConfig(r=r) if r else None
    return twin


def images(model: nn.Module, batch: int, device: torch.device) -> Tensor:
    """A batch of noise."""
    size = model.pretrained_cfg["input_size"]
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(1)).to(device)


def forward_rows(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    batches: Sequence[int],
    r: Sequence[int],
    modes: Sequence[str],
    backends: Sequence[str],
    runs: int,
    max_pass_s: float,
    min_seconds: float = 0.05,
) -> Iterator[dict[str, Any]]:
    """Rows of a model's forward pass; batches whose pass would take longer than `max_pass_s` are named and left out."""
    dense = create(name, device)
    models = {(backend, value): merged(dense, value) for backend in backends for value in r}
    image_s = 0.0
    for batch in sorted(batches):
        if image_s * batch > max_pass_s:
            reason = f"a pass would take about {image_s * batch:.0f} s"
            yield {"model": name, "batch": batch, "skipped": reason}
            continue
        x = images(dense, batch, device)
        for mode in modes:
            ways, parity = {}, {}
            for key, model in models.items():
                try:
                    ways[key], parity[key] = _verified(model, key, x, dtype, mode)
                except Refused as reason:
                    row = {"model": name, "batch": batch, "mode": mode}
                    yield row | {"backend": key[0], "r": key[1], "refused": str(reason)}
            if ways:
                rows = list(_timed(name, models, ways, x, dtype, mode, runs, min_seconds))
                image_s = max(1 / row["images_per_s"] for row in rows)
                yield from (row | {"parity": parity[key]} for key, row in zip(ways, rows))


def _verified(
    model: nn.Module, key: tuple[str, int], x: Tensor, dtype: torch.dtype, mode: str
) -> tuple[Callable, dict[str, float]]:
    """The function to be timed, and how far it is from the eager loop's path.

    Raises:
        Refused: too far.
    """
    backend, r = key
    half = dtype == torch.bfloat16
    few, parity = x[:PARITY_IMAGES], {}
    if backend != REFERENCE:
        expected = _logits(on(REFERENCE, model), few, None)
        got = _logits(on(backend, model), few, None)
        parity["fp32"] = agree("logits", got, expected, TOLERANCE)
        if half and not r:
            got = _logits(on(backend, model), few, dtype)
            parity["bf16"] = agree("logits in bf16", got, expected, TOLERANCE_BF16)
    if mode != "compiled":
        return on(backend, model), parity
    own = merged(model, r)
    compiled = on(backend, torch.compile(_own_code(own), fullgraph=True, dynamic=False))
    tested = compiled
    if half and r:  # what is timed is compiled under autocast; its graph is tested without
        tested = on(backend, torch.compile(_own_code(own), fullgraph=True, dynamic=False))
    kind = dtype if half and not r else None
    limit = TOLERANCE if kind is None else TOLERANCE_BF16
    parity["compiled"] = agree(
        "compiled logits", _logits(tested, x, kind), _logits(on(backend, model), x, kind), limit
    )
    return compiled, parity


@torch.inference_mode()
def _logits(way: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None) -> Tensor:
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        return way(x).float()


def _timed(
    name: str,
    models: dict[tuple[str, int], nn.Module],
    ways: dict[tuple[str, int], Callable],
    x: Tensor,
    dtype: torch.dtype,
    mode: str,
    runs: int,
    min_seconds: float,
) -> Iterator[dict[str, Any]]:
    """Rows of one model at one batch size in one mode, timed in turn."""
    size, batch, device = x.shape[1:], len(x), x.device
    macs = {key: count_flops(models[key], tuple(size), "full").total for key in ways}
    floor = timing.Floor(device, dtype, macs=batch * max(macs.values()))
    labelled = {f"{backend}, r = {r}": ways[backend, r] for backend, r in ways}
    probes = {label: lambda _, probe=probe: probe() for label, probe in floor.probes.items()}
    autocast = None if dtype == torch.float32 else dtype
    how = {"runs": runs, "min_seconds": min_seconds, "cuda_graph": mode == "graphed"}
    found = benchmark({**labelled, **probes}, x, dtype=autocast, **how)
    for (backend, r), label in zip(ways, labelled):
        took = found[label]
        row = {"model": name, "batch": batch, "mode": mode, "backend": backend, "r": r}
        row |= {"tokens": models[backend, r].num_tokens[-1], "macs": macs[backend, r]}
        row |= {**timing.times(took), "images_per_s": took.images_per_s}
        if (backend, 0) in ways:
            dense = found[f"{backend}, r = 0"]
            row["speed_up"], row["speed_up_spread"] = timing.ratio(dense.seconds, took.seconds)
            row["theory"] = macs[backend, 0] / macs[backend, r]
        share = macs[backend, r] / max(macs.values())
        row |= timing.against_floor((floor.ms(found) or 0.0) * share, row["median_ms"])
        row["memory_bytes"] = took.peak_memory
        if device.type == "cpu":
            row["memory_bytes"] = timing.peak_memory(
                lambda way=ways[backend, r]: _logits(way, x, autocast), device
            )
        yield row


def training_rows(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    r: int,
    backends: Sequence[str],
    runs: int,
    min_seconds: float = 0.05,
) -> Iterator[dict[str, Any]]:
    """Rows of an optimizer step with a dense teacher: forward of both, loss, backward, AdamW."""
    teacher = create(name, device)
    x = images(teacher, batch, device)
    steps, parity, failed = {}, {}, {}
    for backend in backends:
        try:
            parity[backend] = {"gradients": _gradient_parity(name, device, r, backend, x[:PARITY_IMAGES])}
            steps[backend] = on(backend, _step(create(name, device, r).train(), teacher, x, dtype))
        except Refused as reason:
            failed[backend] = str(reason)
    head = {"model": name, "batch": batch, "r": r}
    yield from ({**head, "backend": backend, "refused": reason} for backend, reason in failed.items())
    found = timing.interleave(steps, device, runs, min_seconds) if steps else {}
    for backend, step in steps.items():
        row = {**head, "backend": backend, **timing.times(found[backend])}
        row["images_per_s"] = batch / found[backend].median_s
        yield row | {"memory_bytes": timing.peak_memory(step, device), "parity": parity[backend]}


def _gradient_parity(name: str, device: torch.device, r: int, backend: str, x: Tensor) -> float:
    if backend == REFERENCE:
        return 0.0
    model, flat = create(name, device, r).train(), []
    for way in (backend, REFERENCE):
        model.zero_grad()
        with forced(way):
            model(x).float().square().sum().backward()
        flat.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return agree("gradient of the parameters", *flat, TOLERANCE)


def _step(student: nn.Module, teacher: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    loss = DistillLoss(teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    targets = torch.randint(0, student.num_classes, (len(x),), device=x.device)

    def step() -> None:
        with torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32):
            value = loss(x, student(x), targets)["loss"]
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
