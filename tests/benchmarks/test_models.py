"""Models' forward passes and training steps: verified, timed beside a peer's, and refused where they differ."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import models, peers, report, training

CPU = torch.device("cpu")
NANO = "vim_nano_patch2_16"
SETTING = models.Setting(CPU, runs=5, min_seconds=0.0)


def test_a_model_that_differs_from_its_reference_is_refused(monkeypatch):
    on = models.on
    monkeypatch.setattr(models, "on", lambda backend, way: lambda *inputs: on(backend, way)(*inputs) * 1.01)
    (row,) = models.rows(NANO, 1, "eager", SETTING)
    assert "logits: RMS ratio 9.9e-03" in row["refused"]


def test_a_training_step_with_other_gradients_is_refused(monkeypatch):
    real = training.agree
    monkeypatch.setattr(training, "agree", lambda name, got, *rest: real(name, got * 1.01, *rest))
    (row,) = training.rows(NANO, 1, 5, SETTING)
    assert "gradient of the parameters" in row["refused"]


def test_rows_of_a_model():
    setting = replace(SETTING, dtype=torch.bfloat16, r=(0, 5), backends=("auto", "torch"))
    rows = list(models.rows(NANO, 1, "eager", setting))
    assert [(row["backend"], row["r"]) for row in rows] == [
        ("auto", 0),
        ("auto", 5),
        ("torch", 0),
        ("torch", 5),
    ]
    dense, merged, *_ = rows
    assert dense["speed_up"] == 1 and merged["tokens"] == 55 and merged["theory"] > 1
    assert dense["parity"]["bf16"] < models.TOLERANCE_BF16 and "bf16" not in merged["parity"]


def test_a_peer_is_verified_and_timed_and_one_without_kernels_refused():
    setting = replace(SETTING, r=(0, 5), backends=("auto", "peer"), kernels=peers.find(None, CPU))
    rows = list(models.rows(NANO, 1, "eager", setting))
    assert [(row["backend"], row["r"]) for row in rows] == [
        ("auto", 0),
        ("auto", 5),
        ("peer", 0),
        ("peer", 5),
    ]
    assert all((row["backend"] == "auto") == ("over_peer" in row) for row in rows)
    assert all(row["parity"]["fp32"] < models.TOLERANCE for row in rows)
    ours, theirs = training.rows(NANO, 2, 5, setting)
    assert ours["over_peer"] > 0 and theirs["parity"]["gradients"] < models.TOLERANCE
    refused, timed = models.rows(NANO, 1, "eager", replace(setting, r=(0,), kernels="not built"))
    assert "no kernels of the peer: not built" in refused["refused"] and timed["backend"] == "auto"


def test_a_peer_that_breaks_while_it_is_timed_leaves_ours(monkeypatch):
    real = models._timed

    def broken(models, ways, *others):
        if any(backend == "peer" for backend, _ in ways):
            raise RuntimeError("out of memory")
        return real(models, ways, *others)

    monkeypatch.setattr(models, "_timed", broken)
    setting = replace(SETTING, backends=("auto", "peer"), kernels=peers.find(None, CPU))
    refused, timed = models.rows(NANO, 1, "eager", setting)
    assert refused["refused"] == "RuntimeError: out of memory" and timed["backend"] == "auto"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_compiled_model(dtype):
    for row in models.rows(NANO, 2, "compiled", replace(SETTING, dtype=dtype, r=(0, 5))):
        assert row["mode"] == "compiled" and row["parity"]["compiled"] < models.TOLERANCE_BF16


def test_batches_that_would_take_too_long_are_named(monkeypatch):
    monkeypatch.setattr(models, "_image_seconds", lambda *_: 1.0)
    (row,) = models.rows(NANO, 10, "eager", replace(SETTING, max_pass=9.0))
    assert row["batch"] == 10 and "a pass would take about 10 s" in row["skipped"]
    assert "left out: a pass would take" in report.line(row)


def test_rows_of_a_training_step():
    ours, eager = training.rows(NANO, 2, 5, replace(SETTING, backends=("auto", "torch")))
    assert ours["backend"] == "auto" and eager["backend"] == "torch"
    assert ours["images_per_s"] == pytest.approx(2e3 / ours["median_ms"])
    if sys.platform == "linux":
        assert 0 < ours["memory_bytes"] <= eager["memory_bytes"]
