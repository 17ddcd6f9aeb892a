"""Exported models beside the model they are made of: seconds to export, milliseconds, greatest deviation.

An ONNX file runs in onnxruntime with as many threads as torch has, a package of AOTInductor in this process; both take
any batch size. The model and its export are timed in turn; "slower" is how many times as long the export takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import models, timing
from benchmarks.parity import Refused
from benchmarks.results import Unit
from rmeeto.export import to_onnx, to_package
from rmeeto.measure import benchmark

CASES = (("vim_tiny_patch16_224", 0), ("vim_tiny_patch16_224", 11), ("vim_small_patch16_224", 0))
QUICK = (("vim_nano_patch2_16", 4),)
BATCHES = (1, 8)
LIMIT = 1e-4  # of a deviation, as a share of the largest logit


def units(device: torch.device, runs: int, quick: bool = False) -> Iterator[Unit]:
    """A unit for each model and way of export."""
    for way in WAYS:
        for name, r in QUICK if quick else CASES:
            yield Unit(f"{name}, r = {r}, {way}", partial(rows, name, r, way, device, runs), "exported")


def rows(name: str, r: int, way: str, device: torch.device, runs: int) -> Iterator[dict[str, Any]]:
    """A row for each batch size."""
    model = models.merged(models.create(name, device), r) if r else models.create(name, device)
    with TemporaryDirectory() as folder:
        start, start_cpu = time.perf_counter(), time.process_time()
        run = WAYS[way](model, Path(folder))
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        for batch in BATCHES:
            x = models.images(model, batch, device)
            with torch.inference_mode():
                expected = model(x)
                deviation = float((run(x) - expected).abs().max() / expected.abs().max())
            if not deviation <= LIMIT:
                raise Refused(f"{way} of {name}: off by {deviation:.2g} of the largest logit")
            timed = benchmark({"model": model, way: run}, x, runs=runs)
            slower, spread = timing.ratio(timed[way].seconds, timed["model"].seconds)
            yield {
                "what": f"{name}, r = {r}",
                "way": way,
                "batch": batch,
                "export_s": round(seconds, 1),
                "export_cpu_s": round(cpu, 1),
                "model_ms": 1e3 * timed["model"].median_s,
                "exported_ms": 1e3 * timed[way].median_s,
                "slower": slower,
                "slower_IQR": spread,
                "deviation": deviation,
            }


def _onnx(model: torch.nn.Module, folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    import onnxruntime

    file = to_onnx(model, folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(file, options)
    (given,) = session.get_inputs()
    return lambda x: torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


def _package(model: torch.nn.Module, folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch._inductor.aoti_load_package(str(to_package(model, folder / "model.pt2")))


WAYS = {"ONNX": _onnx, "package": _package}
