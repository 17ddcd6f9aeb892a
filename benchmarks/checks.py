"""What has to hold on a device beside what is verified before it is timed: kernels, recorded numbers, no waiting."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import models, numerics
from benchmarks.parity import rms_ratio
from benchmarks.results import Unit
from rmeeto.engine.dist import World
from rmeeto.engine.distill import DistillLoss
from rmeeto.engine.loop import Training
from rmeeto.engine.optim import OptimConfig
from rmeeto.engine.record import RunConfig

ROOT = Path(__file__).resolve().parents[1]
# Golden logits were recorded on a CPU in fp32 (README, "Tolerances"); a GPU adds in another order.
GOLDEN_BOUND = 5e-4
MIXER_BOUNDS = 1e-4, 5e-4  # outputs, gradients


def units(device: torch.device, quick: bool = False) -> Iterator[Unit]:
    """Each check; one that does not hold fails, and the others go on."""
    for check in (
        golden,
        no_sync,
        captured_step,
        numerics.training,
        numerics.tf32,
        numerics.finite_guard,
        kernels,
    ):
        yield Unit(check.__name__, partial(_row, check, device, quick), "checks")


def _row(check: Callable[..., dict[str, Any]], device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    printed = io.StringIO()  # a training that has to fail would look like one that is to be taken for real
    with contextlib.redirect_stdout(printed):
        found = check(device, quick)
    yield {"check": check.__name__, "found": found, "printed": printed.getvalue().splitlines()}


def kernels(device: torch.device, quick: bool) -> dict[str, Any]:
    """Every kernel against its definition, output and gradients (a GPU's sizes there, few in a quick run)."""
    files = ["add_norm"] if quick else ["add_norm", "conv1d", "merge", "mixer", "scan", "model"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    if not quick and importlib.util.find_spec("xdist"):
        command += ["-n", "6"]  # most of the time goes into compiling
    command += [*(f"tests/ops/triton_cases/{file}_cases.py" for file in files), "-m", "not slow"]
    environment = os.environ | ({} if device.type == "cuda" else {"TRITON_INTERPRET": "1"})
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-1500:]
    return {"pytest": done.stdout.strip().splitlines()[-1]}


def golden(device: torch.device, quick: bool) -> dict[str, Any]:
    """Recorded Vim models, mixers and merges (their ties among them), fp32 on this device, TF32 off."""
    from tests.golden_data import Case, names, randn
    from tests.image_task.test_golden_vim import recorded_vim
    from tests.merge.test_golden_merge import check_merge
    from tests.nn.test_golden_mixer import check_mixer

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    worst, count = 0.0, 0
    for name in names("vim_small.npz")[: 3 if quick else None]:
        case = Case("vim_small.npz", name)
        c = case.config
        network = recorded_vim(c).to(device)
        x = randn(c["key"], (c["batch"], 3, c["img_size"], c["img_size"])).to(device)
        with torch.no_grad():
            logits = network(x).double().cpu()
        expected = torch.from_numpy(case["logits"]).double()
        error = float((logits - expected).abs().max() / expected.abs().max())
        assert error <= GOLDEN_BOUND, f"{name}: {error:.1e}"
        assert network.num_tokens == case["tokens"].tolist(), name
        worst, count = max(worst, error), count + 1
    mixers, merges = names("mixer.npz"), names("merge_image.npz")
    for name in mixers:
        check_mixer(Case("mixer.npz", name), device, *MIXER_BOUNDS)
    for name in merges[: 20 if quick else None]:
        check_merge(Case("merge_image.npz", name), device)
    cases = {"models": count, "mixers": len(mixers), "merges": len(merges)}
    return {"cases": cases, "worst model": worst, "bound": GOLDEN_BOUND, "tf32": False}


def no_sync(device: torch.device, quick: bool) -> dict[str, Any]:
    """Forward pass, and the engine's optimizer step, under `torch.cuda.set_sync_debug_mode("error")`."""
    name = models.SMALLEST[device.type]
    ours = models.create(name, device, 5)
    images = models.images(ours, 4, device)
    training = Training(
        models.create(name, device, 5).train(),
        data=None,
        criterion=DistillLoss(models.create(name, device), 0.5),
        optim=OptimConfig(clip_grad=1.0, accumulation=2, model_ema=True),
        run=RunConfig(amp="bf16"),
        world=World(device),
        folder=SimpleNamespace(path=Path(tempfile.gettempdir()), trained_on={}),
    )
    batch = images, torch.zeros(4, dtype=torch.long, device=device)
    with torch.no_grad():
        ours(images)
    training.step(iter([batch, batch]), group=2)  # compile kernels, make the optimizer's state
    with watched(device), torch.no_grad():
        ours(images)
    with watched(device):
        training.step(iter([batch, batch]), group=2)
    training.stop_if_not_finite()
    return {"watched": device.type == "cuda"}


def captured_step(device: torch.device, quick: bool) -> dict[str, Any]:
    """200 steps of the engine with a teacher and drop path, as CUDA graphs and one by one: the same weights."""
    name, steps = models.SMALLEST[device.type], 2 if quick else 200
    images = models.images(models.create(name, device), 4, device)
    batch = images, torch.arange(4, device=device)
    weights, active = [], []
    for on in (False, True):
        training = Training(
            models.create(name, device, 5, drop_path_rate=0.1).train(),
            data=None,
            criterion=DistillLoss(models.create(name, device), 0.5),
            optim=OptimConfig(lr=1e-4, accumulation=2, cuda_graph=on),
            run=RunConfig(amp="bf16"),
            world=World(device),
            folder=SimpleNamespace(path=Path(tempfile.gettempdir()), trained_on={}),
        )
        for _ in range(steps):
            training.step(iter([batch, batch]), group=2)
            training.at.step += 1
        training.stop_if_not_finite()
        weights.append(torch.cat([p.detach().flatten() for p in training.model.parameters()]))
        active.append(training.passes.active)
    difference = rms_ratio(weights[1], weights[0])
    assert difference < 1e-5, difference
    return {"captured": active[1], "steps": steps, "rms_ratio": difference, "equal": torch.equal(*weights)}


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[None]:
    """Any synchronising call raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
