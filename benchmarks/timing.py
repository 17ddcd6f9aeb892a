"""Time, memory and floors: what every benchmark here measures with."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.floors import Rates
from rmeeto.measure import Timing, benchmark
from rmeeto.measure.graphs import Captured

SFU_LANES = 16  # special-function results of a streaming multiprocessor and clock, for CUDA's exponentials
PRODUCT_SIDE = {"cpu": 512, "cuda": 8192}
USUAL_CLOCK = 1_755_000  # kHz, of an H200
COPY = 1 << 32  # bytes of the probe that a GPU's bandwidth is known by
REPLAYED = 10  # calls of a small operator in a CUDA graph
Key = TypeVar("Key")


def interleave(
    ways: Mapping[Key, Callable[[], Any]],
    device: torch.device,
    runs: int,
    min_seconds: float = 0.05,
    replays: bool = False,
) -> dict[Key, Timing]:
    """Time functions of no arguments in turn, with gradients allowed; a run lasts `min_seconds` or more.

    Args:
        replays: on a GPU, time its work alone, as CUDA graphs: launching small functions takes longer than running
            them. What fits into the GPU's cache stays there from call to call.
    """

    def alone(way: Callable[[], Any]) -> Callable[[Any], Any]:
        run = Captured(lambda: [way() for _ in range(REPLAYED)]) if graphs else way

        @torch.inference_mode(False)
        def call(_: Any) -> Any:
            return run()

        return call

    graphs = replays and device.type == "cuda"
    nothing, calls = torch.empty(1, device=device), REPLAYED if graphs else 1
    alone_each = {name: alone(way) for name, way in ways.items()}
    found = benchmark(alone_each, nothing, runs=runs, warmup=1, min_seconds=min_seconds)
    return {
        name: Timing(tuple(run / calls for run in took.seconds), 1, took.calls * calls) for name, took in found.items()
    }


def times(timing: Timing) -> dict[str, Any]:
    """What a result file keeps of a timing, in milliseconds."""
    values = timing.to_dict()
    return {
        "median_ms": values["latency_ms"],
        "spread_ms": values["spread_ms"],
        "runs_ms": [round(run, 5) for run in values["runs_ms"]],
    }


def ratio(baseline: Sequence[float], ours: Sequence[float]) -> tuple[float, float]:
    """How many times faster: the medians' ratio, and the spread (IQR) of the rounds' ratios."""
    rounds = np.asarray(baseline) / np.asarray(ours)
    first, third = np.percentile(rounds, (25, 75))
    return float(np.median(baseline) / np.median(ours)), float(third - first)


def against_floor(floor_ms: float | None, measured_ms: float) -> dict[str, float | None]:
    """The floor, and the share of the measured time that it is: 1 is the best that can be."""
    return {"floor_ms": floor_ms, "share_of_floor": None if floor_ms is None else floor_ms / measured_ms}


def peak_memory(way: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that one call adds at its peak: of CUDA's allocator, or of the process (Linux; None elsewhere)."""
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or the call would be served from what earlier ones gave back
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        way()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def exponential_rate(device: torch.device) -> float:
    """Exponentials a second of a GPU's special-function units."""
    properties = torch.cuda.get_device_properties(device)
    kilohertz = getattr(properties, "clock_rate", None) or USUAL_CLOCK  # some versions of torch do not know it
    return properties.multi_processor_count * SFU_LANES * kilohertz * 1e3


class Floor:
    """The least time that this device can take for some work, from probes that are timed in turn with it.

    Args:
        device, dtype: of the work.
        traffic: bytes that it reads and writes; the probe copies as many.
        macs: multiply-accumulates in its matrix products; the probe is a product of square matrices.
        exponentials: bounded by CUDA's special-function units, and by nothing that is known on a CPU.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, traffic: int = 0, macs: int = 0, exponentials: int = 0
    ) -> None:
        self.probes: dict[Any, Callable[[], Any]] = {}
        self._scales: dict[str, float] = {}
        self._bounds_s: list[float] = []
        self._device, self._traffic = device, traffic
        if traffic:
            source = torch.ones(max(1, traffic // 8), device=device)
            self._add("copy", partial(torch.empty_like(source).copy_, source), traffic / (8 * source.numel()))
        if macs:
            side = PRODUCT_SIDE[device.type]
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            self._add("product", partial(torch.mm, a, b), macs / side**3)
        if exponentials and device.type == "cuda":
            self._bounds_s.append(exponentials / exponential_rate(device))

    def _add(self, name: str, probe: Callable[[], Any], scale: float) -> None:
        self.probes[f"probe: {name}"], self._scales[f"probe: {name}"] = probe, scale

    def rates(self, timings: Mapping[str, Timing]) -> Rates:
        """What the device can do in a second, from the timings of both probes."""
        copy, product = (timings[f"probe: {name}"].median_s for name in ("copy", "product"))
        flops = 2 * PRODUCT_SIDE[self._device.type] ** 3 / product
        return Rates(self._traffic / copy, flops, exponential_rate(self._device))

    def ms(self, timings: Mapping[str, Timing]) -> float | None:
        """The floor, from the timings of the probes; None where nothing is known to bound the work."""
        bounds = [scale * timings[name].median_s for name, scale in self._scales.items()]
        bounds += self._bounds_s
        return 1e3 * max(bounds) if bounds else None
