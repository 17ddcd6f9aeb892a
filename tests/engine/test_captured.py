"""A captured step changes no number, and what cannot be captured says so in a line and runs on."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rmeeto.engine import DistillLoss, OptimConfig, World, captured
from tests.engine.test_loop import log_of, same, train
from tests.engine.toy import toy_model

OPTIM = {"lr": 5e-2, "min_lr": 1e-3, "epochs": 34, "accumulation": 2, "clip_grad": 1.0, "model_ema": True}


@pytest.fixture
def graphs(monkeypatch):
    """The work itself stands in for its graph; the list has what was captured."""
    made: list = []
    monkeypatch.setattr(captured, "cannot", lambda *_: None)
    monkeypatch.setattr(captured, "capture", lambda run: made.append(run) or run)
    return made


def test_two_hundred_steps_are_those_of_the_eager_ones(graphs, tmp_path, capsys):
    """204 optimizer steps of two micro-batches with a teacher, clipping and averaged weights."""
    runs = {}
    for on in (False, True):
        criterion = DistillLoss(toy_model(seed=3))
        optim = OptimConfig(**OPTIM, cuda_graph=on)
        runs[on] = train(tmp_path / str(on), optim, criterion=criterion)
    assert runs[True][1]["steps"] == 204 and len(graphs) == 1
    assert same(runs[True][0].state_dict(), runs[False][0].state_dict())
    assert same(log_of(tmp_path / "True"), log_of(tmp_path / "False"))
    assert "without optim.cuda_graph" not in capsys.readouterr().out


def test_the_shorter_step_at_the_end_of_an_epoch_is_a_graph_of_its_own(graphs, tmp_path):
    for on in (False, True):
        optim = OptimConfig(**OPTIM | {"accumulation": 5, "epochs": 5}, cuda_graph=on)
        train(tmp_path / str(on), optim)
    assert len(graphs) == 2
    assert same(log_of(tmp_path / "True"), log_of(tmp_path / "False"))


def draws(generator):
    class Draws(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = toy_model()

        def forward(self, images):
            return self.head(images) * (1 + 0.01 * generator())

    return Draws()


@pytest.mark.parametrize("generator", [lambda: torch.rand(()), np.random.rand, random.random])
def test_a_model_that_draws_on_the_cpu_is_not_captured(generator, graphs, tmp_path, capsys):
    _, result = train(tmp_path, OptimConfig(**OPTIM | {"epochs": 2}, cuda_graph=True), model=draws(generator))
    assert result["steps"] == 12 and not graphs
    line = "note: without optim.cuda_graph, since the model draws random numbers on the CPU"
    assert capsys.readouterr().out.count(line) == 1


def test_a_capture_that_fails_is_one_line_and_the_run_goes_on(graphs, tmp_path, capsys, monkeypatch):
    def capture(run):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(captured, "capture", capture)
    model, _ = train(tmp_path / "on", OptimConfig(**OPTIM | {"epochs": 2}, cuda_graph=True))
    assert capsys.readouterr().out.count("since operation not permitted when stream is capturing\n") == 1
    assert same(model.state_dict(), train(tmp_path / "off", OptimConfig(**OPTIM | {"epochs": 2}))[0].state_dict())


def test_on_a_cpu_a_run_says_that_it_goes_without(tmp_path, capsys):
    _, result = train(tmp_path, OptimConfig(**OPTIM | {"epochs": 1}, cuda_graph=True))
    assert result["steps"] == 6
    line = "note: without optim.cuda_graph, since CUDA graphs need a CUDA device and this run is on cpu"
    assert capsys.readouterr().out.count(line) == 1


def test_several_processes_changing_r_and_cached_answers_are_reasons():
    gpu = torch.device("cuda")
    assert captured.cannot(OptimConfig(), World(gpu, size=2)) == "gradients pass between 2 processes"
    assert captured.cannot(OptimConfig(), World(gpu)) is None
    assert "another r" in captured.cannot(OptimConfig(elastic_r=(0, 5)), World(gpu))
    assert "teacher_cache" in captured.cannot(OptimConfig(), World(gpu), cached=True)
