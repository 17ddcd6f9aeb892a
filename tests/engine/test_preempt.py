"""Told to leave, killed, hanging: what a run leaves behind, and that a resumed one is like any other."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import time
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from image_task.main import main
from rmeeto.engine import start
from rmeeto.engine.checkpoint import load
from rmeeto.engine.dist import lost_process
from rmeeto.engine.preempt import EXIT_CODE, Preempted
from rmeeto.engine.watchdog import Watchdog
from tests import forked
from tests.engine import two_processes
from tests.engine.test_dist import weights
from tests.engine.test_loop import log_of, same
from tests.engine.toy import ToyData, cpu
from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[2]


class Held(ToyData):
    """Data whose micro-batch number `HELD` of an epoch comes when there is a file `go`; `held` says that it waits."""

    HELD = 3

    def __init__(self, path, *where):
        super().__init__(*where)
        self.path = path

    def train_batches(self, epoch, start=0):
        for number, batch in enumerate(super().train_batches(epoch, start), start):
            if number == self.HELD:
                (self.path / "held").touch()
                while not (self.path / "go").exists():
                    time.sleep(0.01)
            yield batch


def train(path, held_rank=None, **run) -> int:
    """A training in a forked process; its exit code, as the command line's."""
    with start("cpu") as world:
        where = world.rank, world.size
        data = Held(path, *where) if world.rank == held_rank else ToyData(*where)
        try:
            two_processes.train(path, world, 1, data=data, dropout=0.3, log_every=1, **run)
        except Preempted as error:
            (path / f"said{world.rank}").write_text(str(error))
            return EXIT_CODE
        except RuntimeError as error:
            assert lost_process(error), error
            return 1
    return 0


def started(size: int, path) -> list[int]:
    """Processes that train; the last one's data are held, and the others wait for it."""
    port = forked.free_port()
    environ = [forked.environment(rank, size, port) for rank in range(size)]
    pids = [forked.fork(functools.partial(train, path, held_rank=size - 1), **values) for values in environ]
    forked.until(lambda: (path / "held").exists())
    return pids


@pytest.mark.parametrize(("size", "number"), [(1, signal.SIGUSR1), (2, signal.SIGTERM)])
def test_a_notice_to_any_process_saves_and_the_run_goes_on_to_the_same_weights(tmp_path, size, number):
    pids = started(size, tmp_path / "cut")
    os.kill(pids[-1], number)
    (tmp_path / "cut" / "go").touch()
    assert forked.wait(pids) == [EXIT_CODE] * size == [75] * size
    said = (tmp_path / "cut" / f"said{size - 1}").read_text()
    assert number.name in said and "--resume goes on from" in said
    saved = weights(tmp_path / "cut")["position"]
    assert (saved["step"], saved["epoch"]) == (Held.HELD + 1, 0), "behind the step that it was told in"
    assert forked.run(size, lambda: train(tmp_path / "cut", resume=True)) == [0] * size
    assert forked.run(size, lambda: train(tmp_path / "whole")) == [0] * size
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")


def test_who_survives_a_killed_process_ends_soon(tmp_path):
    pids = started(2, tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    assert forked.wait(pids) == [1, -signal.SIGKILL]
    assert not list((tmp_path / "toy").glob("stacks*")), "the watchdog had to end it"


def test_where_a_process_hangs_all_write_where_they_are_and_end(tmp_path, monkeypatch, capfd):
    """The clock stands still until one hangs; then it is a second later whenever it is looked at."""
    patience, seconds = timedelta(seconds=1.5), count(1.0)

    def others_have_written(_: float) -> None:
        (tmp_path / os.environ["RANK"]).touch()
        forked.until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())

    late = tmp_path / "held"
    monkeypatch.setattr("rmeeto.engine.watchdog.monotonic", lambda: next(seconds) if late.exists() else 0.0)
    monkeypatch.setattr("rmeeto.engine.watchdog.sleep", others_have_written)
    monkeypatch.setattr("rmeeto.engine.watchdog.FIRST_WORD", 0.5)
    monkeypatch.setattr("rmeeto.engine.loop.Watchdog", functools.partial(Watchdog, patience=patience))
    pids = started(2, tmp_path)
    assert forked.wait(pids) == [1, 1]
    stacks = [(tmp_path / "toy" / f"stacks-rank{rank}.txt").read_text() for rank in range(2)]
    assert "in train_batches" in stacks[1] and "in step" in stacks[0]
    said = capfd.readouterr().err
    assert "note: no step for 1 s; the run ends after" in said and "Traceback" not in said
    for rank in range(2):
        assert f"error: rank {rank} has done no step for" in said


def test_who_was_stopped_for_long_goes_on(monkeypatch, tmp_path):
    """A wait of a second took an hour, as behind Ctrl-Z and fg; then each takes a second, up to the patience."""
    times, ended = iter([0.0, 0.0, 0.0, 3600.0, 3600.0, *range(3601, 3700)]), []
    monkeypatch.setattr("rmeeto.engine.watchdog.monotonic", lambda: next(times))
    dog = Watchdog(cpu(), tmp_path, timedelta(seconds=20))
    monkeypatch.setattr(dog, "_done", type("Never", (), {"wait": lambda self, seconds: bool(ended)})())
    monkeypatch.setattr(dog, "_give_up", ended.append)
    dog._watch()
    assert ended == [20.0]


HELD = """
import os, sys, time
from pathlib import Path
from image_task.main import main
from rmeeto.engine.loop import Training

step = Training.step

def held(training, *arguments):
    if training.at.step == 2:
        Path("held" + os.environ["RANK"]).touch()
        while training.saver.notice.signal is None:
            time.sleep(0.01)
    return step(training, *arguments)

Training.step = held
sys.exit(main())
"""


def test_two_processes_of_a_launcher_leave_and_one_goes_on(tmp_path, monkeypatch, capfd):
    """Through the command line; one process accumulates what two did, and the settings stay as they were."""
    monkeypatch.chdir(tmp_path)
    line = (
        "--data_set digits --num_workers 1 --batch_size 8 --accumulation 1 --repeated_aug False --epochs 1 "
        "--input_size 8 --max_train_batches 4 --max_eval_batches 1 --log_every 1 --device cpu --name run"
    ).split()
    launcher = [PYTHON, "-m", "rmeeto.cli.launch", "--standalone", "--nproc_per_node", "2"]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHON_EXEC": PYTHON}
    Path("held.py").write_text(HELD)
    process = subprocess.Popen([*launcher, "held.py", *line], stderr=subprocess.PIPE, text=True, env=environ)
    forked.until(lambda: process.poll() is not None or all(Path(f"held{rank}").exists() for rank in "01"))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == EXIT_CODE, errors
    assert errors.count("stopped by SIGTERM") == 1 and "Traceback" not in errors
    before = load(Path("log/run/last.pt"))
    assert before["position"]["batch"] == before["position"]["step"] == 3

    assert main([*line, "--resume"]) == 0
    assert "2 processes before, 1 now" in capfd.readouterr().out
    after = load(Path("log/run/last.pt"))
    assert after["accumulation"] == 2 and after["batches_per_epoch"] == 2 * before["batches_per_epoch"] == 8
    assert after["position"]["step"] == 4
    assert json.loads(Path("log/run/config.json").read_text())["optim"]["accumulation"] == 1
