"""Blocks that are compiled one by one train as they do without."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import image_task.models  # noqa: F401
from rmeeto import MergeConfig
from rmeeto.engine import DistillLoss, OptimConfig, compiled, fit, start
from rmeeto.errors import UserError
from tests import forked
from tests.engine.toy import CLASSES, ToyData, cpu, toy_folder, toy_model, toy_run


def model() -> nn.Module:
    merge, sizes = (
        MergeConfig(r=2, interval=1),
        {"img_size": 4, "patch_size": 1, "stride": 1, "depth": 2, "embed_dim": 16},
    )
    torch.manual_seed(0)
    return timm.create_model("vim_nano_patch2_16", merge=merge, num_classes=CLASSES, drop_path_rate=0.0, **sizes)


def train(path, world=None, **settings) -> dict[str, torch.Tensor]:
    optim = OptimConfig(lr=1e-2, epochs=1, accumulation=1, model_ema=True, model_ema_decay=0.5, **settings)
    student = model()
    world = world or cpu()
    with toy_folder(path, world) as folder:
        data = ToyData(world.rank, world.size, total=4)
        fit(student, data, DistillLoss(model()), optim, toy_run(path), world, folder)
    return student.state_dict()


def test_a_training_with_compiled_blocks_is_the_one_without(tmp_path, monkeypatch):
    calls = []

    def aot(module, backend="aot_eager"):
        calls.append(real(module, backend))

    real = compiled.compile_blocks
    monkeypatch.setattr("rmeeto.engine.loop.compile_blocks", aot)

    def work():  # in a process of its own: torch starts threads for it that no fork survives
        return train(tmp_path / "compiled", compile_blocks=True), calls

    ((ours, calls),) = forked.run(1, work)
    theirs = train(tmp_path / "eager")
    assert calls == [2, 2]  # of the student and of its teacher
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_compile_as_one_does(tmp_path, monkeypatch):
    real = compiled.compile_blocks
    monkeypatch.setattr("rmeeto.engine.loop.compile_blocks", lambda module: real(module, "aot_eager"))
    states = []
    for chosen in (True, False):

        def work(chosen=chosen):
            with start("cpu") as world:
                return train(tmp_path / str(chosen), world, compile_blocks=chosen)

        states.append(forked.run(2, work)[0])
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-6)


def test_a_copy_is_not_compiled_and_a_model_without_blocks_is_refused():
    student = model()
    compiled.compile_blocks(student, "eager")
    assert all(block._compiled_call_impl is not None for block in student.layers)
    assert all(block._compiled_call_impl is None for block in copy.deepcopy(student).layers)
    with pytest.raises(UserError, match="a Sequential has no blocks"):
        compiled.compile_blocks(toy_model())
