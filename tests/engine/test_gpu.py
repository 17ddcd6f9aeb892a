from __future__ import annotations

import pytest
import torch

from benchmarks.checks import captured_step
from rmeeto.engine import DistillLoss, OptimConfig, checkpoint, evaluate, fit, start
from tests.engine.test_loop import Cut, cut_at
from tests.engine.toy import ToyData, toy_folder, toy_model, toy_run

pytestmark = pytest.mark.gpu


def train(path, data=None, dtypes=None, **run):
    with start("cuda") as world:
        model, teacher = toy_model(dropout=0.1).to(world.device), toy_model(seed=3).to(world.device)
        loss = DistillLoss(teacher)

        def criterion(images, logits, targets):
            if dtypes is not None:
                dtypes.add(logits.dtype)
            return loss(images, logits, targets)

        optim = OptimConfig(lr=5e-2, epochs=3, accumulation=2, clip_grad=1.0, model_ema=True)
        with toy_folder(path, world) as folder:
            result = fit(model, data or ToyData(), criterion, optim, toy_run(path, **run), world, folder)
        assert evaluate(model, ToyData(), world)["top1"] > 60
    return result


def test_bf16_is_the_default_and_learns(tmp_path):
    dtypes = set()
    train(tmp_path, dtypes=dtypes, amp="auto")
    assert dtypes == {torch.bfloat16}


def test_a_resumed_run_follows_the_uninterrupted_one(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(Cut):
        train(tmp_path / "cut", cut_at(ToyData(), 1, 7), checkpoint_every=2)
    cut = train(tmp_path / "cut", resume=True, checkpoint_every=2)
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-3)
    state = checkpoint.load(tmp_path / "cut" / "toy" / "last.pt")
    assert "cuda" in state["ranks"][0]["rng"]


def test_two_hundred_captured_steps_are_the_eager_ones():
    found = captured_step(torch.device("cuda"), quick=False)
    assert found["captured"] and found["steps"] == 200
