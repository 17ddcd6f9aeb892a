"""What has to hold before anything is timed: the kernels, the models, the peers and the recorded numbers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.peers import Released
from benchmarks.gpu.setting import ROOT, Setting
from rmeeto.engine.dist import World
from rmeeto.engine.distill import DistillLoss
from rmeeto.engine.loop import Training
from rmeeto.engine.optim import OptimConfig
from rmeeto.engine.record import RunConfig
from tests.helpers import rms_ratio

# Golden logits were recorded on a CPU in fp32 (README, "Tolerances"); a GPU adds in another order.
GOLDEN_BOUND = 5e-4
MIXER_BOUNDS = 1e-4, 5e-4  # outputs, gradients


def run(setting: Setting) -> dict[str, Any]:
    """Every check but the peer's; the run fails with the list of those that do not hold."""
    start = time.perf_counter()
    checks = {
        "kernels": lambda: kernels(setting),
        "model": lambda: model(setting),
        "golden": lambda: golden(setting),
        "sync": lambda: no_sync(setting),
    }
    results: dict[str, Any] = {}
    for name, check in checks.items():
        try:
            results[name] = {"holds": True, **check()}
        except Exception as error:  # every check reports, whatever the others do
            results[name] = {"holds": False, "error": f"{type(error).__name__}: {error}"[-2000:]}
        results[name]["at_s"] = round(time.perf_counter() - start, 1)
    failed = [name for name, result in results.items() if not result["holds"]]
    if failed:
        raise AssertionError(f"{', '.join(failed)}: {results}")
    return results


def kernels(setting: Setting) -> dict[str, Any]:
    """Every kernel against its definition, output and gradients (STYLE's sizes on a GPU, few in a dry run)."""
    files = ["add_norm"] if setting.dry else ["add_norm", "conv1d", "merge", "scan", "model"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    if not setting.dry and importlib.util.find_spec("xdist"):
        command += ["-n", "6"]  # most of the time goes into compiling
    command += [f"tests/ops/triton_cases/{file}_cases.py" for file in files] + [
        "-m",
        "not slow",
    ] * setting.dry
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if setting.dry else {})
    log = setting.out / "checks.log"
    with log.open("w") as file:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file).returncode
    printed = log.read_text().strip()
    assert code == 0, printed[-1500:]
    return {"pytest": printed.splitlines()[-1]}


def model(setting: Setting) -> dict[str, Any]:
    """A merged model on the kernels against the same on plain PyTorch: logits and gradients, fp32."""
    errors = {}
    for name in list(setting.models)[:1]:
        ours = setting.model(name, r=5).train()
        images = setting.images(4)
        outputs, gradients = [], []
        for backend in ("auto", "torch"):
            with forced(backend):
                ours.zero_grad()
                logits = ours(images)
                logits.square().sum().backward()
            outputs.append(logits.detach())
            gradients.append([p.grad.clone() for p in ours.parameters()])
        errors[name] = rms_ratio(*outputs)
        errors[f"{name}, worst gradient"] = max(rms_ratio(a, b) for a, b in zip(*gradients))
    assert max(errors.values()) < 1e-3, errors
    return {"rms_ratio": errors}


def peer(setting: Setting) -> dict[str, Any]:
    """A part of its own, behind the build: the restated peer computes what our model does."""
    found = setting.kernels()
    if isinstance(found, str):
        return {"skipped": found}
    name = next(iter(setting.models))
    ours = setting.model(name, r=5).eval()
    images = setting.images(4)
    with torch.no_grad():
        error = rms_ratio(Released(ours, found)(images), ours(images))
    assert error < 1e-3, error
    if not setting.dry:  # the packages are importable now: the ladder's own adapters too
        with forced("upstream"), torch.no_grad():
            adapted = rms_ratio(ours(images), Released(ours, found)(images))
        assert adapted < 1e-3, adapted
    return {"kernels": found.name, "rms_ratio": error}


def golden(setting: Setting) -> dict[str, Any]:
    """Recorded Vim models, mixers and merges (their ties among them), fp32 on this device, TF32 off."""
    from tests.golden_data import Case, names, randn
    from tests.image_task.test_golden_vim import recorded_vim
    from tests.merge.test_golden_merge import check_merge
    from tests.nn.test_golden_mixer import check_mixer

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    worst, count = 0.0, 0
    for name in names("vim_small.npz")[: 3 if setting.dry else None]:
        case = Case("vim_small.npz", name)
        c = case.config
        network = recorded_vim(c).to(setting.device)
        x = randn(c["key"], (c["batch"], 3, c["img_size"], c["img_size"])).to(setting.device)
        with torch.no_grad():
            logits = network(x).double().cpu()
        expected = torch.from_numpy(case["logits"]).double()
        error = float((logits - expected).abs().max() / expected.abs().max())
        assert error <= GOLDEN_BOUND, f"{name}: {error:.1e}"
        assert network.num_tokens == case["tokens"].tolist(), name
        worst, count = max(worst, error), count + 1
    mixers, merges = names("mixer.npz"), names("merge_image.npz")
    for name in mixers:
        check_mixer(Case("mixer.npz", name), setting.device, *MIXER_BOUNDS)
    for name in merges[: 20 if setting.dry else None]:
        check_merge(Case("merge_image.npz", name), setting.device)
    cases = {"models": count, "mixers": len(mixers), "merges": len(merges)}
    return {"cases": cases, "worst model": worst, "bound": GOLDEN_BOUND, "tf32": False}


def no_sync(setting: Setting) -> dict[str, Any]:
    """Forward pass, and the engine's optimizer step, under `torch.cuda.set_sync_debug_mode("error")`."""
    name = next(iter(setting.models))
    ours, images = setting.model(name, r=5).eval(), setting.images(4)
    training = Training(
        setting.model(name, r=5).train(),
        data=None,
        criterion=DistillLoss(setting.model(name), 0.5),
        optim=OptimConfig(clip_grad=1.0, accumulation=2, model_ema=True),
        run=RunConfig(amp="bf16"),
        world=World(setting.device),
        folder=None,
    )
    batch = images, torch.zeros(4, dtype=torch.long, device=setting.device)
    with torch.no_grad():
        ours(images)
    training.step(iter([batch, batch]), group=2)  # compile kernels, make the optimizer's state
    with watched(setting), torch.no_grad():
        ours(images)
    with watched(setting):
        training.step(iter([batch, batch]), group=2)
    training.stop_if_not_finite()
    return {"watched": not setting.dry}


@contextmanager
def watched(setting: Setting) -> Iterator[None]:
    """Any synchronising call raises."""
    if setting.dry:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """RMEETO_BACKEND for a while."""
    before = os.environ.get("RMEETO_BACKEND")
    os.environ["RMEETO_BACKEND"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["RMEETO_BACKEND"]
        else:
            os.environ["RMEETO_BACKEND"] = before
