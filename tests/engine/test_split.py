"""A step is the same however it is split into processes x accumulation, also where a run goes on with other ones."""

from __future__ import annotations

import pytest
import torch

from rmeeto.engine import OptimConfig, start
from rmeeto.engine.split import split_for
from rmeeto.errors import UserError
from tests import forked
from tests.engine import two_processes
from tests.engine.test_dist import weights
from tests.engine.test_loop import Cut, cut_at, log_of, same
from tests.engine.toy import ToyData

TOTAL = 24  # micro-batches an epoch


def train(path, size: int, cut: int | None = None, **run) -> None:
    """The training of steps of 8 micro-batches with dropout, in `size` processes; cut before the step `cut` of
    epoch 2."""

    def work():
        with start("cpu") as world:
            data = ToyData(world.rank, world.size, total=TOTAL)
            if cut is not None:
                data = cut_at(data, 1, cut * 8 // size)
            try:
                two_processes.train(path, world, 8 // size, data=data, dropout=0.3, **run)
            except Cut:
                return

    forked.run(size, work)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    train(path, 1)
    return path


def equal_within_rounding(ours, theirs) -> None:
    assert ours["position"]["step"] == theirs["position"]["step"]
    for kind in ("model", "model_ema"):
        for name, value in theirs[kind].items():
            torch.testing.assert_close(ours[kind][name], value, rtol=1e-4, atol=1e-5)
    losses = [[accuracy["loss"] for accuracy in state["accuracy"].values()] for state in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_any_split_gives_the_same_parameters(whole, tmp_path, size):
    train(tmp_path, size)
    equal_within_rounding(weights(tmp_path), weights(whole))
    for ours, theirs in zip(log_of(tmp_path), log_of(whole), strict=True):
        assert [ours[key] for key in ("event", "step", "epoch")] == [theirs[key] for key in ("event", "step", "epoch")]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_a_run_goes_on_with_other_processes_and_sees_every_sample_once(whole, tmp_path, capfd):
    """4, then 2, then 8 processes; the steps are numbered through."""
    settings = {"checkpoint_every": 1}
    train(tmp_path, 4, cut=1, **settings)
    train(tmp_path, 2, cut=2, resume=True, **settings)
    assert weights(tmp_path)["position"] == {"epoch": 1, "batch": 8, "step": 5}
    train(tmp_path, 8, resume=True, **settings)
    said = capfd.readouterr().out
    assert "4 processes before, 2 now" in said and "2 processes before, 8 now" in said
    assert "cannot" not in said and "checkpoint before it" not in said
    equal_within_rounding(weights(tmp_path), weights(whole))
    assert [line["step"] for line in log_of(tmp_path)] == [line["step"] for line in log_of(whole)]


def test_four_processes_go_on_to_the_last_bit(tmp_path):
    """Gradients are added in the same order, however torch has put them into buckets."""
    settings = {"checkpoint_every": 1}
    train(tmp_path / "whole", 4, **settings)
    train(tmp_path / "cut", 4, cut=2, **settings)
    train(tmp_path / "cut", 4, resume=True, **settings)
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_accumulation_follows_the_processes_and_says_which_do():
    optim = OptimConfig(accumulation=2, processes=8)
    assert [split_for(optim, size).accumulation for size in (1, 2, 4, 8, 16)] == [16, 8, 4, 2, 1]
    assert split_for(OptimConfig(accumulation=2), 4).accumulation == 2
    resumed = split_for(OptimConfig(accumulation=3), 3, before=4)
    assert (resumed.accumulation, resumed.processes) == (4, 4)
    with pytest.raises(UserError, match=r"16 micro-batches \(8 processes x accumulation 2\).* into 3 .* of 1, 2, 4"):
        split_for(optim, 3)


def test_an_epoch_of_other_length_is_refused(tmp_path):
    train(tmp_path, 2, cut=1, checkpoint_every=1)

    def other():
        with start("cpu") as world:
            two_processes.train(
                tmp_path, world, 8, data=ToyData(total=16), dropout=0.3, resume=True, checkpoint_every=1
            )

    with pytest.raises(UserError, match="2 processes with 12 batches an epoch each; here are 1 with 16"):
        other()


def test_gradients_travel_as_bf16_on_request(tmp_path):
    for reduce in ("fp32", "bf16"):
        train(tmp_path / reduce, 2, reduce=reduce)
    exact, rounded = (weights(tmp_path / reduce)["model"] for reduce in ("fp32", "bf16"))
    assert not same(exact, rounded)
    for name, value in exact.items():
        assert (value - rounded[name]).norm() < 0.1 * value.norm() + 0.1
