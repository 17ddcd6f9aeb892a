from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from rmeeto.engine import checkpoint
from rmeeto.errors import UserError
from tests.limits import run_limited

CPU = torch.device("cpu")


def test_what_is_saved_is_loaded(tmp_path):
    state = {"a": torch.randn(3), "b": {"c": [1, 2.5, None, "x", True]}}
    checkpoint.save(tmp_path / "x.pt", state)
    loaded = checkpoint.load(tmp_path / "x.pt")
    assert torch.equal(loaded.pop("a"), state.pop("a")) and loaded == state
    assert os.listdir(tmp_path) == ["x.pt"]


@pytest.mark.parametrize("broken", ["torch.save", "os.fsync", "os.replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, broken):
    checkpoint.save(tmp_path / "x.pt", {"step": 1})

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"rmeeto.engine.checkpoint.{broken}", fail)
        with pytest.raises(UserError, match="No space left.*intact"):
            checkpoint.save(tmp_path / "x.pt", {"step": 2})
    assert checkpoint.load(tmp_path / "x.pt") == {"step": 1}
    assert os.listdir(tmp_path) == ["x.pt"]


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr("os.replace", lambda *a: (calls.append("replace"), replace(*a))[1])
    checkpoint.save(tmp_path / "x.pt", {"step": 1})
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("size", [0, 100, 700])
def test_a_truncated_file_is_a_user_error(tmp_path, size):
    checkpoint.save(tmp_path / "x.pt", {"a": torch.randn(100)})
    os.truncate(tmp_path / "x.pt", size)
    with pytest.raises(UserError, match="cannot be read as a checkpoint") as caught:
        checkpoint.load(tmp_path / "x.pt")
    assert len(str(caught.value).splitlines()) <= 2


class Harmful:
    def __reduce__(self):
        return os.system, ("echo harm",)


def test_a_file_brings_no_code(tmp_path, capfd):
    torch.save({"x": Harmful()}, tmp_path / "x.pt")
    with pytest.raises(UserError):
        checkpoint.load(tmp_path / "x.pt")
    assert "harm" not in capfd.readouterr().out.splitlines()


def test_random_generators_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), random.gauss(0, 1), np.random.randn(3).tolist(), torch.randn(3).tolist()

    random.gauss(0, 1)
    np.random.randn()  # both keep half of a pair
    checkpoint.save(tmp_path / "x.pt", {"rng": checkpoint.rng_state(CPU)})
    expected = draw()
    draw()
    checkpoint.set_rng_state(checkpoint.load(tmp_path / "x.pt")["rng"], CPU)
    assert draw() == expected


def test_the_checkpoint_before_is_kept(tmp_path):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in range(3):
        checkpoint.save(last, {"step": step}, previous)
        assert checkpoint.load(last) == {"step": step}
        assert not step or checkpoint.load(previous) == {"step": step - 1}
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def test_an_error_that_is_not_the_disks_is_not_taken_for_it(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("a data worker was killed")

    monkeypatch.setattr("rmeeto.engine.checkpoint.torch.save", fail)
    with pytest.raises(RuntimeError, match="a data worker was killed"):
        checkpoint.save(tmp_path / "x.pt", {"step": 1})
    assert os.listdir(tmp_path) == []


def test_a_disk_that_refuses_within_a_write_is_named(tmp_path):
    """A limit on the size of files: torch turns the operating system's error into one of its own."""
    code = """
import resource, signal, sys, torch
from pathlib import Path
from rmeeto.engine import checkpoint
from rmeeto.errors import UserError
from tests.limits import run_limited
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(Path(sys.argv[1]), {"w": torch.zeros(10**6)})
except UserError as error:
    print(error)
"""
    assert "x.pt cannot be written ([Errno 27] File too large); what was there" in run_limited(code, tmp_path / "x.pt")
    assert os.listdir(tmp_path) == []


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "x.pt.tmp").symlink_to("thesis")
    checkpoint.save(tmp_path / "x.pt", {"step": 1})
    assert (tmp_path / "thesis").read_text() == "years of work" and checkpoint.load(tmp_path / "x.pt") == {"step": 1}


def test_a_pipe_is_no_checkpoint_and_nothing_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(UserError, match="no regular file"):
        checkpoint.load(tmp_path / "x.pt")
