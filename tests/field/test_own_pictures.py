"""README's way on one's own pictures: every line of it is a command that is understood."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from image_task import finetune, main, throughput
from rmeeto.engine.loop import Training

ROOT = Path(__file__).resolve().parents[2]


def lines() -> list[list[str]]:
    section = (ROOT / "README.md").read_text().split("## Your own pictures")[1].split("\n## ")[0]
    (common,) = re.findall(r'`M="([^"]+)"`', section)
    blocks = re.findall(r"```bash\n(.*?)```", section, re.S)
    found = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line.replace("$M", common), comments=True) for line in found]


def test_a_student_from_scratch_beside_a_trained_teacher_is_trained_and_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    teacher = ROOT / "image_task" / "exp_sh" / "digits" / "dense.safetensors"
    short = "--epochs 1 --max_train_batches 1 --max_eval_batches 1 --batch_size 4 --accumulation 1 --num_workers 0"
    line = f"--distill --teacher_pth {teacher} --r 4 --device cpu --name x {short}"
    assert main.main(line.split()) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "weights drawn from seed 0" in told and "a dense teacher" in told
    assert "the student starts from random weights beside a trained teacher; --model_pth gives it" in told


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_folder_that_is_removed_meanwhile_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    step = Training.step

    def removing(training, *arguments):
        if training.at.step == 2:
            shutil.rmtree(training.folder.path)
        return step(training, *arguments)

    monkeypatch.setattr(Training, "step", removing)
    write = RecordWriter.write  # a slow disk: what is not written before the next step is written too late
    monkeypatch.setattr(RecordWriter, "write", lambda writer, data: (time.sleep(0.02), write(writer, data)))
    line = "--epochs 1 --max_train_batches 4 --max_eval_batches 1 --batch_size 4 --accumulation 1 --num_workers 0"
    assert main.main(f"{line} --log_every 1 --device cpu --name x".split()) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.splitlines()[-1].startswith("error: log/x is gone, removed or moved")


def test_each_step_is_there():
    modules = [words[2] for words in lines() if words[:2] == ["python", "-m"]]
    steps = ("finetune", "main", "throughput", "visualize", "predict", "export")
    assert set(modules) == {f"image_task.{step}" for step in steps}
    assert ["tensorboard", "--logdir", "runs"] in lines()
    assert all((ROOT / words[1]).is_file() for words in lines() if words[0] == "python" and words[1] != "-m")


@pytest.mark.parametrize(
    "words",
    [
        words
        for words in lines()
        if words[2:3] in (["image_task.main"], ["image_task.finetune"], ["image_task.throughput"])
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_its_flags_are_known(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if words[2:3] == ["image_task.main"]:
        assert main.main([*words[3:], "--dry_run"]) == 0
    elif words[2:3] == ["image_task.finetune"]:
        given, notes = finetune.parser().read(words[3:])
        assert given["command"].values == {"folder": "photos"} and given["merge"].values == {"r": 11} and notes == []
    elif words[2:3] == ["image_task.throughput"]:
        assert throughput.parse(words[3:]).r == [0, 11]


@pytest.mark.parametrize("command", ["image_task.export", "video_task.export", "rmeeto.record", "image_task.shards"])
def test_a_tilde_is_the_home_folder_where_a_shell_leaves_it(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = {"rmeeto.record": ["~/none"], "image_task.shards": ["~/none", "--output=~/out"]}.get(
        command, ["~/none", "x"]
    )
    assert importlib.import_module(command).main(words) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/none" in error and "~" not in error
