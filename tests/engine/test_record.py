from __future__ import annotations

import errno
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
    (tmp_path / "result.json").write_text('{"top1": 50.0}')
    with pytest.raises(UserError, match="holds a finished run; set run.resume"):
        state_of(tmp_path, CONFIG, resume=False)
    assert state_of(tmp_path, CONFIG, resume=True) == "done"


def test_a_log_that_a_full_disk_does_not_take_is_one_line(tmp_path):
    class Full:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        close = flush = lambda self: self.write("")

    with RunFolder(tmp_path, CONFIG, cpu()) as folder:
        folder._log = Full()
        with pytest.raises(UserError, match=r"log.jsonl cannot be written \(No space left on device\); make room"):
            folder.log("train", {"step": 1}, {"loss": 1.0})


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


def test_an_empty_folder_is_no_folder():
    with pytest.raises(UserError, match="output_dir.*expected a folder"):
        RunConfig(output_dir="")


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000 + "b"])
def test_a_path_that_is_too_long_is_a_user_error(path, tmp_path):
    with pytest.raises(UserError, match="cannot be a run folder .*choose another run.output_dir"):
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


def at_most(step: int):
    return lambda line: line["step"] <= step


def write_log(folder, *steps: int) -> None:
    with RunFolder(folder, CONFIG, cpu()) as run:
        run.start()
        for step in steps:
            run.log("train", {"epoch": 1, "step": step}, {"loss": float(step)})


def test_resuming_cuts_the_log_at_the_checkpoint(tmp_path):
    write_log(tmp_path, 1, 2)
    with RunFolder(tmp_path, CONFIG, cpu()) as folder:
        assert folder.log_lines() == 2
        assert folder.start(1, at_most(1), lines=1) == []
        folder.log("train", {"epoch": 1, "step": 2}, {"loss": 5.0})
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses == [1.0, 5.0]
    assert not (tmp_path / "log.1.jsonl").exists()
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(1, 1.0), (2, 5.0)]


DAMAGES = {
    "cut in a line": lambda log: log[:-30],
    "emptied": lambda log: b"",
    "a line is lost": lambda log: b"".join(log.splitlines(keepends=True)[1:]),
    "a foreign line": lambda log: b"see below\n" + log,
    "a line of another kind": lambda log: b"[1]\n" + log + b'{"step": "x"}\n',
    "zeros": lambda log: log[:20] + bytes(40) + log[60:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_log_is_cut_at_whole_lines_and_what_is_missing_is_said(tmp_path, damage):
    write_log(tmp_path, 1, 2, 3)
    log = tmp_path / "log.jsonl"
    log.write_bytes(damage(log.read_bytes()))
    before = log.read_bytes()
    with RunFolder(tmp_path, CONFIG, cpu()) as folder:
        notes = folder.start(3, at_most(3), lines=3)
        folder.log("train", {"epoch": 1, "step": 4}, {"loss": 4.0})
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and steps[-1] == 4 and set(steps) <= {1, 2, 3, 4}
    missing = [note for note in notes if "others are lost" in note]
    assert bool(missing) == (len(steps) < 4)
    if len(steps) < 4:
        assert f"has {len(steps) - 1} of its 3 lines up to step 3" in missing[0]
    copied = tmp_path / "log.1.jsonl"
    assert not copied.exists() or (copied.read_bytes() == before and any("is kept as" in note for note in notes))


def test_a_run_that_starts_anew_keeps_the_log_of_before(tmp_path):
    for expected in ("log.1.jsonl", "log.2.jsonl"):
        write_log(tmp_path, 1)
        before = (tmp_path / "log.jsonl").read_bytes()
        with RunFolder(tmp_path, CONFIG, cpu()) as folder:
            (note,) = folder.start()
        assert expected in note and (tmp_path / expected).read_bytes() == before
        assert (tmp_path / "log.jsonl").read_bytes() == b""


@pytest.mark.parametrize("content", ["[1]", "null", "{}", "3", "{", "[" * 10**5, '{"top1": null}'])
def test_a_result_that_is_none_does_not_mark_a_run_as_done(tmp_path, content):
    RunFolder(tmp_path, CONFIG, cpu()).close()
    (tmp_path / "result.json").write_text(content)
    assert state_of(tmp_path, CONFIG, resume=True) == "continued"


@pytest.mark.parametrize("name", ["config.json", "env.json"])
@pytest.mark.parametrize(
    "content", ["[]", "3", "null", '{"a": 1e999}', '{"a":' * 10**5, '{"a":' * 500 + "1" + "}" * 500]
)
def test_a_run_folder_with_other_json_is_a_user_error(tmp_path, name, content):
    RunFolder(tmp_path, CONFIG, cpu()).close()
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} cannot be read as JSON"):
        state_of(tmp_path, CONFIG, resume=True)
        RunFolder(tmp_path, CONFIG, cpu())


def test_an_environment_of_another_kind_is_taken_along(tmp_path):
    RunFolder(tmp_path, CONFIG, cpu()).close()
    (tmp_path / "env.json").write_text('{"resumed": 3}')
    RunFolder(tmp_path, CONFIG, cpu()).close()
    assert len(json.loads((tmp_path / "env.json").read_text())["resumed"]) == 1


@pytest.mark.parametrize("name", ["log.jsonl", "config.json", "env.json"])
def test_a_pipe_in_the_place_of_a_file_does_not_hang(tmp_path, name):
    RunFolder(tmp_path, CONFIG, cpu()).close()
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="no regular file"):
        state_of(tmp_path, CONFIG, resume=True)
        RunFolder(tmp_path, CONFIG, cpu())


@pytest.mark.parametrize("name", ["log.jsonl", "env.json.tmp", "config.json.tmp"])
def test_a_link_in_the_place_of_a_file_is_not_written_through(tmp_path, name):
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to("../thesis")
    if name == "log.jsonl":
        with pytest.raises(UserError, match="cannot be written"):
            RunFolder(tmp_path / "run", CONFIG, cpu())
    else:
        write_log(tmp_path / "run", 1)
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_only_the_main_process_writes(tmp_path):
    with RunFolder(tmp_path / "run", CONFIG, cpu()) as folder:
        folder._writes = False
        folder.start()
        folder.log("train", {"epoch": 1, "step": 1}, {"loss": 3.0})
        folder.finish({})
        assert folder.log_lines() == 0
    assert (tmp_path / "run" / "log.jsonl").read_text() == ""
    assert not (tmp_path / "run" / "result.json").exists()


def test_two_processes_do_not_write_to_one_folder(tmp_path, capfd):
    def second() -> None:
        try:
            RunFolder(tmp_path, CONFIG, cpu())
        except UserError as error:
            os.write(1, str(error).encode())

    with RunFolder(tmp_path, CONFIG, cpu()) as folder:
        folder.start()
        folder.log("train", {"epoch": 1, "step": 1}, {"loss": 3.0})
        assert folder.log_lines() == 1  # reads the log, which is what is locked
        before = (tmp_path / "env.json").read_bytes()
        process = multiprocessing.get_context("fork").Process(target=second)
        process.start()
        process.join(timeout=300)
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
