from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from rmeeto.engine import checkpoint, evaluate, start
from rmeeto.engine.agree import agree
from rmeeto.errors import UserError
from tests import forked
from tests.engine import two_processes
from tests.engine.test_loop import log_of, same
from tests.engine.toy import ToyData, cpu, toy_model


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder in which two gloo processes did what `two_processes.py` says, and what each saw."""
    out = tmp_path_factory.mktemp("two")
    return out, forked.run(2, lambda: two_processes.main(out))


@pytest.fixture(scope="module")
def folder(two) -> Path:
    return two[0]


@pytest.fixture(scope="module")
def seen(two) -> list[dict]:
    return two[1]


def weights(path: Path) -> dict:
    return checkpoint.load(path / "toy" / "last.pt")


def test_two_processes_equal_one_that_accumulates_to_the_last_bit(folder, tmp_path):
    """The mean of two micro-batches is the same sum, whether one process adds it or two."""
    two_processes.train(tmp_path, cpu(), accumulation=2)
    ours, theirs = weights(tmp_path), weights(folder / "plain")
    assert same(ours["model"], theirs["model"])
    assert same(ours["model_ema"], theirs["model_ema"])
    assert ours["accuracy"]["model"]["top1"] == theirs["accuracy"]["model"]["top1"]


def test_accumulation_in_two_processes_is_accumulation_over_both(folder, tmp_path):
    two_processes.train(tmp_path, cpu(), accumulation=4)
    ours, theirs = weights(tmp_path), weights(folder / "accumulated")
    assert ours["position"] == {**theirs["position"]}
    for name, value in ours["model"].items():
        torch.testing.assert_close(value, theirs["model"][name], rtol=1e-4, atol=1e-5)


def test_losses_in_the_log_are_means_over_both(folder, tmp_path):
    two_processes.train(tmp_path, cpu(), accumulation=2)
    for ours, theirs in zip(log_of(tmp_path), log_of(folder / "plain"), strict=True):
        assert ours.keys() == theirs.keys()
        if ours["event"] == "train":
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-12)


def test_two_resumed_processes_equal_two_uninterrupted_ones_to_the_last_bit(folder):
    whole, resumed = weights(folder / "whole"), weights(folder / "resumed")
    assert len(whole["ranks"]) == 2
    assert not same(whole["ranks"][0]["rng"]["torch"], whole["ranks"][1]["rng"]["torch"])
    assert same(whole, resumed)
    assert log_of(folder / "whole") == log_of(folder / "resumed")


def test_both_processes_train_at_the_same_r(seen):
    (ours, weight), (theirs, other) = (process["elastic"] for process in seen)
    assert ours == theirs and len(ours) == 3 * 6 and ours[::3] == [16] * 6
    assert weight == other


def test_evaluation_is_the_same_for_any_number_of_processes(seen):
    alone = evaluate(toy_model(), ToyData(unreadable=[3, 6]), cpu())
    for result in (process["evaluation"] for process in seen):
        assert result.pop("loss") == pytest.approx(alone["loss"], rel=1e-6)
        assert result == {key: value for key, value in alone.items() if key != "loss"}
        assert (result["count"], result["unreadable"]) == (37, 2)


def test_processes_agree(seen):
    for rank, process in enumerate(seen):
        assert process["gathered"] == ["from 0", "from 1"]
        assert process["on_main"] == "from 0"
        assert process["together"] == rank
        assert process["failed_on_main"] == process["failed_on_0"] == "raised at 0"
        assert process["failed_on_1"] == "rank 1: raised at 1"


def test_a_loss_of_one_process_that_is_not_finite_stops_both(folder, seen):
    """Micro-batch 7 of both is the 4th of rank 1: both stop before step 4, with the weights of step 3."""
    for process in seen:
        assert "not finite on rank 1 at step 4" in process["not_finite"]
    assert weights(folder / "bad")["position"]["step"] == 3


def test_a_checkpoint_of_other_steps_is_not_resumed(folder):
    with pytest.raises(UserError, match=r"steps of 2 micro-batches \(2 processes x accumulation 1\); here are 1 x 1"):
        two_processes.train(folder / "plain", cpu(), accumulation=1, resume=True)


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with start("cpu") as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert world.gather(3) == [3] and world.on_main(lambda: 4) == 4 and world.on_every(lambda: 5) == 5
        assert not torch.distributed.is_initialized()


def test_an_incomplete_launch_is_a_user_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK=None.*torchrun"), start("cpu"):
        pass


def test_a_device_that_is_absent_is_a_user_error(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="device='cuda': torch sees no GPU"), start("cuda"):
        pass
    with start("auto") as world:
        assert world.device.type == "cpu"


def test_processes_that_were_started_differently_say_so_before_the_first_step():
    def work():
        with start("cpu") as world:
            settings = {"optim": {"lr": 0.1 * (1 + world.rank), "epochs": 3}, "data": {"path": world.rank}}
            agree(world, {"optim": {"epochs": 3}})
            return two_processes.failure(lambda: agree(world, settings, {"data.path"}))

    for said in forked.run(2, work):
        assert "differently: optim.lr 0.1 on rank 0, 0.2 on rank 1. Start all with the same code" in said


def test_processes_that_were_told_other_numbers_end_at_once():
    def work():
        os.environ["WORLD_SIZE"] = str(2 + int(os.environ["RANK"]))
        try:
            with start("cpu"):
                return "met"
        except UserError as error:
            return str(error)

    first, second = forked.run(2, work)
    assert "rank 0 was told of 2 processes, rank 1 of 3; start all with the same NNODES" in first
    assert "rank 1 was told of 3 processes, rank 0 of 2" in second
