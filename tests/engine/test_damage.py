"""Sixty checkpoints that are cut short or have a flipped bit: each is named, none is used."""

from __future__ import annotations

import random

import pytest
import torch

from rmeeto.engine import checkpoint
from rmeeto.engine.resume import FILES
from rmeeto.errors import UserError
from tests.engine.test_loop import log_of, same, train
from tests.engine.test_resume import SETTINGS, run, stopped, whole  # noqa: F401  (fixtures)


def test_sixty_damaged_checkpoints_are_named_and_none_is_used(run, tmp_path):  # noqa: F811
    good, state = (run / FILES[0]).read_bytes(), checkpoint.load(run / FILES[0])
    damaged, rng = tmp_path / "damaged.pt", random.Random(0)
    refused = unharmed = 0
    while refused < 60:
        data = bytearray(good)
        if refused % 2:
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        damaged.write_bytes(data)
        try:
            assert same(checkpoint.load(damaged), state), "a damaged checkpoint was taken for a whole one"
            unharmed += 1  # the bit is in the padding between records, or in a time that nobody reads
        except UserError as error:
            assert str(damaged) in str(error) and "\n" not in str(error)
            refused += 1
    assert unharmed < 60


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_the_run_goes_on_from_the_one_before(run, whole, damage, capsys):  # noqa: F811
    data = bytearray((run / FILES[0]).read_bytes())
    data[len(data) // 2] ^= 1
    (run / FILES[0]).write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    torch.manual_seed(9)
    train(run.parent, resume=True, **SETTINGS)
    assert f"note: {run / FILES[0]} cannot be read" in capsys.readouterr().out
    assert log_of(run.parent) == log_of(whole)


def test_where_no_step_is_left_of_an_epoch_the_rate_is_the_last_ones(tmp_path, monkeypatch):
    """Killed behind the last step of an epoch, which is saved, and before its evaluation."""
    settings = {"checkpoint_every": 1}
    train(tmp_path / "whole", **settings)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("rmeeto.engine.loop.Training.evaluate_epoch", lambda self: 1 / 0)
        train(tmp_path / "cut", **settings)
    train(tmp_path / "cut", resume=True, **settings)
    states = [checkpoint.load(tmp_path / name / "toy" / FILES[0]) for name in ("whole", "cut")]
    assert same(*states)


def test_a_disk_that_is_full_within_an_epoch_is_noted_and_tried_again(tmp_path, monkeypatch, capsys):
    save, refused = checkpoint.save, []

    def full(path, state, previous=None):
        if path.name == FILES[0] and 2 <= state["position"]["step"] <= 4:
            refused.append(state["position"]["step"])
            raise checkpoint.DiskError(f"{path} cannot be written (No space left)")
        save(path, state, previous)

    monkeypatch.setattr("rmeeto.engine.saving.checkpoint.save", full)
    _, result = train(tmp_path, checkpoint_every=1)
    assert refused == [2, 3, 4] and result["epochs"] == 3
    said = capsys.readouterr().out
    assert said.count("cannot be written (No space left)") == said.count("the run goes on, and tries again") == 3
