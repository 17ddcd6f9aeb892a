"""How fast models are: interleaved, warmed up, synchronised, with medians and their spread."""

from __future__ import annotations

import math
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.layout import BySamples
from rmeeto.measure.graphs import Captured
from rmeeto.measure.without_merging import without_merging

MIN_RUNS = 5


@dataclass(frozen=True)
class Timing:
    """The runs of one model on one batch.

    Args:
        seconds: of one forward pass, in each run.
        batch_size: samples in a pass.
        calls: passes in a run, one behind the other.
        peak_memory: bytes that a pass needs: the model's own weights, the batch, and what it allocates at its peak
            (before capture, where a CUDA graph is timed); None on a CPU.
        merging_share: share of the time that merging takes, or None if the model merges nothing: the median over the
            rounds of ``1 - t' / t``, where t' is the time of the same model at the same token counts without matching
            and merging (see `without_merging`).
        merging_spread: between the first and the third quartile of that share over the rounds. A share within its
            spread, even one below zero, says no more than that merging costs little beside the noise.

    Raises:
        UserError: fewer runs than a median and a spread need.
    """

    seconds: tuple[float, ...]
    batch_size: int
    calls: int = 1
    peak_memory: int | None = None
    merging_share: float | None = None
    merging_spread: float | None = None

    def __post_init__(self) -> None:
        if len(self.seconds) < MIN_RUNS:
            raise UserError(f"{len(self.seconds)} timed runs are too few for a median; expected {MIN_RUNS} or more")

    @property
    def median_s(self) -> float:
        """Seconds of a pass: the latency of a batch."""
        return float(np.median(self.seconds))

    @property
    def spread_s(self) -> float:
        """Seconds between the first and the third quartile of the runs."""
        return _spread(self.seconds)

    @property
    def images_per_s(self) -> float:
        """Samples in a second, at the median."""
        return self.batch_size / self.median_s

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times in milliseconds, memory in bytes."""
        return {
            "batch_size": self.batch_size,
            "latency_ms": self.median_s * 1e3,
            "spread_ms": self.spread_s * 1e3,
            "images_per_s": self.images_per_s,
            "peak_memory_bytes": self.peak_memory,
            "merging_share": self.merging_share,
            "merging_spread": self.merging_spread,
            "calls_per_run": self.calls,
            "runs_ms": [seconds * 1e3 for seconds in self.seconds],
        }


def benchmark(
    models: Mapping[str, Callable[[Tensor], Any]],
    batch: Tensor,
    *,
    runs: int = 7,
    warmup: int = 2,
    dtype: torch.dtype | None = None,
    compile: bool = False,
    cuda_graph: bool = False,
    by_samples: bool = False,
    merging: bool = False,
    min_seconds: float = 0.05,
) -> dict[str, Timing]:
    """Time forward passes, the models in turn in every round, so that what slows the machine slows them all.

    Args:
        models: by name; modules (in evaluation mode) or any functions of a batch.
        batch: input; its device is the device.
        runs: timed runs of each model, 5 or more.
        warmup: passes before the first of them.
        dtype: of autocast; None for none.
        compile: time ``torch.compile(fullgraph=True)`` of each model.
        cuda_graph: time replays of a CUDA graph of each model.
        by_samples: share a batch out among a CPU's threads by samples (`rmeeto.layout.BySamples`).
        merging: measure the share of time in merging too (another model for each one that merges).
        min_seconds: passes are repeated within a run until it lasts as long.

    Returns:
        A `Timing` for each name.

    Raises:
        UserError: too few runs, a module in training mode or on another device, a CUDA graph asked for on another
            device, or a model that cannot be compiled or captured.

    Example:
        >>> models = {"dense": Vim().eval(), "r = 5": Vim(merge=MergeConfig(r=5)).eval()}
        >>> {name: t.images_per_s for name, t in benchmark(models, torch.randn(8, 3, 224, 224)).items()}
    """
    _check(models, batch, runs, warmup, cuda_graph)
    entries: list[tuple[str, bool, Callable]] = []
    for name, model in models.items():
        twin = without_merging(model) if merging else None
        entries += [(name, False, model)] + ([] if twin is None else [(name, True, twin)])
    if by_samples:
        entries = [(name, is_twin, BySamples(model)) for name, is_twin, model in entries]
    passes, memory, calls = {}, {}, {}
    with torch.inference_mode():
        for name, is_twin, model in entries:
            key = (name, is_twin)
            passes[key], memory[key] = _prepare(name, model, batch, dtype, compile, cuda_graph, warmup)
            calls[key] = max(1, math.ceil(min_seconds / seconds_of(batch.device, passes[key])))
        seconds: dict[tuple[str, bool], list[float]] = {key: [] for key in passes}
        keys = list(passes)
        for i in range(runs):
            start = i % len(keys)  # nobody is always the one behind the same other
            for key in keys[start:] + keys[:start]:
                seconds[key].append(seconds_of(batch.device, passes[key], calls[key]))
    timings = {}
    for name in models:
        key, twin = (name, False), seconds.get((name, True))
        shares = None if twin is None else [1 - without / whole for without, whole in zip(twin, seconds[key])]
        measured = (None, None) if shares is None else (float(np.median(shares)), _spread(shares))
        timings[name] = Timing(tuple(seconds[key]), len(batch), calls[key], memory[key], *measured)
    return timings


def _check(models: Mapping[str, Callable], batch: Tensor, runs: int, warmup: int, cuda_graph: bool) -> None:
    if runs < MIN_RUNS:
        raise UserError(f"benchmark: runs={runs}; expected {MIN_RUNS} or more, for a median and its spread")
    if warmup < 1:
        raise UserError(f"benchmark: warmup={warmup}; expected 1 or more: the first pass is never typical")
    if cuda_graph and batch.device.type != "cuda":
        raise UserError(f"benchmark: CUDA graphs need a CUDA device; this batch is on {batch.device}")
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            continue
        if model.training:
            raise UserError(f"benchmark: {name} is in training mode; call .eval() on it first")
        device = next((p.device for p in model.parameters()), batch.device)
        if device != batch.device:
            raise UserError(f"benchmark: {name} is on {device}, the batch on {batch.device}; move one of them")


def _prepare(
    name: str,
    model: Callable,
    batch: Tensor,
    dtype: torch.dtype | None,
    compile: bool,
    cuda_graph: bool,
    warmup: int,
) -> tuple[Callable[[], Any], int | None]:
    """A warm function of no arguments that runs one pass, and the memory that a pass needs."""
    function = torch.compile(_own_code(model), fullgraph=True, dynamic=False) if compile else model

    def run() -> Any:
        with torch.autocast(batch.device.type, dtype=dtype, enabled=dtype is not None):
            return function(batch)

    try:
        for _ in range(warmup):
            run()
    except torch._dynamo.exc.TorchDynamoException as error:
        raise UserError(f"benchmark: {name} cannot be compiled: {str(error).splitlines()[0]}") from error
    memory = _peak_memory(run, model, batch)
    if not cuda_graph:
        return run, memory
    try:
        replay = Captured(run)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"benchmark: {name} cannot be captured as a CUDA graph: {reason}") from error
    for _ in range(warmup):
        replay()
    return replay, memory


def _own_code(model: Callable) -> Callable:
    """The model as a function with a code object of its own.

    torch.compile keeps what it compiled by code object, and looks through all of it at each call: models that share
    one would slow each other down, and beyond a limit not be compiled at all.
    """

    def forward(x: Tensor) -> Any:
        return model(x)

    return types.FunctionType(forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__)


def _peak_memory(run: Callable[[], Any], model: Callable, batch: Tensor) -> int | None:
    if batch.device.type != "cuda":
        return None
    torch.cuda.synchronize(batch.device)
    torch.cuda.reset_peak_memory_stats(batch.device)
    before = torch.cuda.memory_allocated(batch.device)
    run()
    torch.cuda.synchronize(batch.device)
    tensors = [batch, *model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else [batch]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return torch.cuda.max_memory_allocated(batch.device) - before + held


def seconds_of(device: torch.device, run: Callable[[], Any], calls: int = 1) -> float:
    """Seconds of one call, over ``calls`` of them, in wall-clock time, synchronised."""
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _synchronise(device)
    return (time.perf_counter() - start) / calls


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _spread(values: Sequence[float]) -> float:
    first, third = np.percentile(values, (25, 75))
    return float(third - first)
