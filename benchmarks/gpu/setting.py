"""Where and how a part of the GPU benchmark runs: the device, the sizes, the clock."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import image_task.models  # noqa: F401  (registers the models)
from benchmarks.gpu.floors import H200, Rates
from benchmarks.gpu.peers import Kernels, stand_ins, upstream_kernels
from rmeeto.measure.graphs import Captured
from rmeeto.merge import MergeConfig

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"vim_tiny": 192, "vim_small": 384, "vim_base": 768}  # embedding
REMOVED = (0, 5, 11)


@dataclass(frozen=True)
class Setting:
    """A real run on a GPU, or a dry one: a tiny model on the CPU, with stand-ins for what only a GPU has.

    Args:
        out: folder of the results.
        dry: whether to run dry.
    """

    out: Path
    dry: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def models(self) -> dict[str, int]:
        """Names and embeddings."""
        return {"vim_nano": 32} if self.dry else MODELS

    @property
    def batches(self) -> tuple[int, ...]:
        return (1, 2) if self.dry else (1, 8, 128)

    @property
    def side(self) -> int:
        """Of an image, in pixels."""
        return 16 if self.dry else 224

    def model(self, name: str, r: int = 0, **options: Any) -> nn.Module:
        """A registered model with random weights, on the device, merging r tokens."""
        full = f"{name}_patch2_16" if self.dry else f"{name}_patch16_224"
        torch.manual_seed(0)
        merge = MergeConfig(r=r) if r else None
        return timm.create_model(full, merge=merge, **options).to(self.device)

    def images(self, batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Random ones: zeros would run faster than real data."""
        return torch.randn(batch, 3, self.side, self.side, device=self.device, dtype=dtype)

    def kernels(self) -> Kernels | str:
        """Upstream's kernels, or why they are not there."""
        if self.dry:
            return stand_ins()
        log = self.out / "upstream" / "build.json"
        try:
            return upstream_kernels(log.parent)
        except Exception as error:  # a broken extension can raise anything
            built = json.loads(log.read_text())["error"] if log.exists() else "not built"
            return f"{type(error).__name__}: {error} (build: {built})"

    def replays(self, function: Callable[[], Any], calls: int = 10) -> Callable[[], Any]:
        """The GPU's work of so many calls, as one CUDA graph: launching small ones takes longer than running them."""
        if self.dry:
            return lambda: [function() for _ in range(calls)]
        return Captured(lambda: [function() for _ in range(calls)])

    def device_time(self, functions: Mapping[str, Callable[[], Any]], calls: int = 10) -> dict[str, float]:
        """`time` of the GPU's own work; what fits into its cache stays there from call to call."""
        captured = {name: self.replays(function, calls) for name, function in functions.items()}
        return {name: seconds / calls for name, seconds in self.time(captured).items()}

    def time(self, functions: Mapping[str, Callable[[], Any]], runs: int = 7) -> dict[str, float]:
        """Median seconds of a call of each, one after the other in every round, over calls that last 20 ms."""
        calls, seconds = {}, {name: [] for name in functions}
        for name, function in functions.items():
            function()
            calls[name] = 1 if self.dry else max(1, min(200, int(0.02 / max(self._once(function, 3), 1e-6))))
        for _ in range(1 if self.dry else runs):
            for name, function in functions.items():
                seconds[name].append(self._once(function, calls[name]))
        return {name: statistics.median(values) for name, values in seconds.items()}

    def _once(self, function: Callable[[], Any], calls: int) -> float:
        if self.device.type == "cpu":
            start = time.perf_counter()
            for _ in range(calls):
                function()
            return (time.perf_counter() - start) / calls
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(calls):
            function()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3 / calls

    def rates(self) -> Rates:
        """Ceilings that the part `environment` measured, else those of an H200."""
        file = self.out / "environment.json"
        result = None if self.dry or not file.exists() else json.loads(file.read_text())["result"]
        return H200 if result is None else Rates(**result["rates"])


def in_bf16(model: nn.Module) -> nn.Module:
    """bf16 weights, but for what the scan reads in fp32."""
    state = {name: p.detach().clone() for name, p in model.named_parameters() if _wide(name)}
    model = model.to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name in state:
            parameter.data = state[name]
    return model


def _wide(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in ("A_log", "A_b_log", "D", "D_b")


def describe(setting: Setting) -> dict[str, Any]:
    """Versions, device and commit, for every result file."""
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit() or os.environ.get("COMMIT"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": next((d.version for d in metadata.distributions(name="triton")), None),
        "dry_run": setting.dry,
    }
    if setting.dry:
        return about | {"device": "cpu (dry run)"}
    p = torch.cuda.get_device_properties(0)
    return about | {
        "device": p.name,
        "capability": f"{p.major}.{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def _commit() -> str | None:
    """None on a copy without its history, or where there is no git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None
