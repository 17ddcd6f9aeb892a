from __future__ import annotations

import json
import multiprocessing
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rmeeto.engine import RunConfig, RunFolder
from rmeeto.engine.record import state_of
from rmeeto.errors import UserError
from tests.engine.toy import cpu

CONFIG = {"optim": {"lr": 0.1, "betas": (0.9, 0.99)}, "data": {"num_workers": 2}, "run": {"resume": False}}


def test_a_folder_that_is_absent_or_empty_is_new(tmp_path):
    assert state_of(tmp_path / "run", CONFIG, resume=False) == "new"
    assert state_of(tmp_path / "run", CONFIG, resume=True) == "new"
    (tmp_path / "run").mkdir()
    assert state_of(tmp_path / "run", CONFIG, resume=False) == "new"


def test_a_run_folder_is_not_overwritten(tmp_path):
    RunFolder(tmp_path, CONFIG, cpu()).close()
    with pytest.raises(UserError, match="exists already; set run.resume.*another run.name, or remove it"):
        state_of(tmp_path, CONFIG, resume=False)
    assert state_of(tmp_path, CONFIG, resume=True) == "continued"
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UserError, match="holds a finished run; set run.resume"):
        state_of(tmp_path, CONFIG, resume=False)
    assert state_of(tmp_path, CONFIG, resume=True) == "done"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    for resume in (False, True):
        with pytest.raises(UserError):
            state_of(tmp_path, CONFIG, resume=resume)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "/tmp/x", "../x", "a/b", "a/", "./a", "a/..", "a\0b", "x" * 201, "é" * 101]
)
def test_a_name_stays_in_its_folder(name):
    with pytest.raises(
        UserError, match="RunConfig: name=.*; expected a name of 1 to 200 bytes without /, for one folder"
    ):
        RunConfig(name=name)


@pytest.mark.parametrize("name", [None, "a", "...", "..a", "a b", "-x", "é" * 100, os.fsdecode(b"\xff")])
def test_other_names_are_taken(name):
    assert RunConfig(name=name).name == name


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000 + "b"])
def test_a_path_that_is_too_long_is_a_user_error(path, tmp_path):
    with pytest.raises(UserError, match="cannot be a run folder .*choose another --output_dir"):
        state_of(tmp_path / path, CONFIG, resume=False)


def test_resuming_needs_the_same_settings_except_harmless_ones(tmp_path):
    RunFolder(tmp_path, CONFIG, cpu()).close()
    changed = {**CONFIG, "data": {"num_workers": 9}, "run": {"resume": True}}
    harmless = {"data.num_workers", "run.resume"}
    assert state_of(tmp_path, changed, resume=True, harmless=harmless) == "continued"
    with pytest.raises(UserError, match="other settings: data.num_workers 2 there, 9 here"):
        state_of(tmp_path, changed, resume=True, harmless={"run.resume"})
    other = {**CONFIG, "optim": {"lr": 0.2, "betas": (0.9, 0.99)}}
    with pytest.raises(UserError, match="other settings: optim.lr 0.1 there, 0.2 here") as caught:
        state_of(tmp_path, other, resume=True)
    assert "betas" not in str(caught.value)


def test_a_damaged_config_is_a_user_error(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read as JSON"):
        state_of(tmp_path, CONFIG, resume=True)


def test_the_folder_holds_what_is_needed_to_run_again(tmp_path):
    with RunFolder(tmp_path / "a" / "run", CONFIG, cpu()) as folder:
        folder.start()
        folder.log("train", {"epoch": 1, "step": 5}, {"loss": 0.5}, seconds=3.0)
        folder.finish({"top1": 99.0})
    with RunFolder(tmp_path / "a" / "run", {"another": 1}, cpu()):
        pass
    content = {path.name: path for path in (tmp_path / "a" / "run").iterdir()}
    assert json.loads(content["config.json"].read_text()) == json.loads(json.dumps(CONFIG))
    assert json.loads(content["result.json"].read_text()) == {"top1": 99.0}
    environment = json.loads(content["env.json"].read_text())
    assert {"command", "commit", "torch", "python", "device", "processes"} <= environment.keys()
    assert len(environment["resumed"]) == 1
    line = json.loads(content["log.jsonl"].read_text())
    assert line == {"event": "train", "epoch": 1, "step": 5, "loss": 0.5, "process": {"seconds": 3.0}}


def test_resuming_cuts_the_log_at_the_checkpoint(tmp_path):
    with RunFolder(tmp_path, CONFIG, cpu()) as folder:
        folder.start()
        folder.log("train", {"epoch": 1, "step": 1}, {"loss": 3.0})
        size = folder.log_size()
        folder.log("train", {"epoch": 1, "step": 2}, {"loss": 2.0})
    with RunFolder(tmp_path, CONFIG, cpu()) as folder:
        folder.start(step=1, log_size=size)
        folder.log("train", {"epoch": 1, "step": 2}, {"loss": 1.0})
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses == [3.0, 1.0]
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(1, 3.0), (2, 1.0)]


def test_only_the_main_process_writes(tmp_path):
    with RunFolder(tmp_path / "run", CONFIG, cpu()) as folder:
        folder._writes = False
        folder.start()
        folder.log("train", {"epoch": 1, "step": 1}, {"loss": 3.0})
        folder.finish({})
        assert folder.log_size() == 0
    assert (tmp_path / "run" / "log.jsonl").read_text() == ""
    assert not (tmp_path / "run" / "result.json").exists()


def test_two_processes_do_not_write_to_one_folder(tmp_path, capfd):
    def second() -> None:
        try:
            RunFolder(tmp_path, CONFIG, cpu())
        except UserError as error:
            os.write(1, str(error).encode())

    with RunFolder(tmp_path, CONFIG, cpu()):
        before = (tmp_path / "env.json").read_bytes()
        process = multiprocessing.get_context("fork").Process(target=second)
        process.start()
        process.join(timeout=60)
    assert "another process is writing" in capfd.readouterr().out
    assert (tmp_path / "env.json").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written.*run.output_dir"):
        RunFolder(tmp_path / "file" / "run", CONFIG, cpu())


@pytest.mark.parametrize(
    "wrong", [{"device": "tpu"}, {"amp": "int4"}, {"log_every": 0}, {"checkpoint_every": -1}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"RunConfig: {next(iter(wrong))}="):
        RunConfig(**wrong)
