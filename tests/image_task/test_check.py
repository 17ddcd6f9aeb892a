"""What --check finds before a run: data, a batch of it, weights; and several commands in one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from image_task.flags import parse
from image_task.main import TASK, build_model, main
from rmeeto.cli import dry_runs
from rmeeto.weights import load_weights

WEIGHTS = Path(__file__).resolve().parents[2] / "image_task" / "exp_sh" / "digits" / "dense.safetensors"
GOOD = f"--model_pth {WEIGHTS} --num_prune 12 --if_order --check"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(line: str) -> int:
    return main(line.split())


def test_data_and_weights_are_found_and_nothing_is_written(capsys, tmp_path):
    assert call(f"{GOOD} --distill") == 0
    ready = "ready: digits: 1437 images to train, 360 to evaluate, 10 classes"
    found = [ready, f"       weights {WEIGHTS}", f"       teacher {WEIGHTS}"]
    assert capsys.readouterr().out.splitlines() == found
    assert not list(tmp_path.iterdir())


def test_what_commands_share_is_looked_at_once(monkeypatch, capsys):
    """Twelve commands that differ in r alone make one model, read the weights once and the data once."""
    made, read = [], []
    create, load = TASK._create, TASK.load
    monkeypatch.setattr(TASK, "_seen", {})
    monkeypatch.setattr(TASK, "_create", lambda *a: made.append(a[1]) or create(*a))
    monkeypatch.setattr(TASK, "load", lambda *a, **k: read.append(a[3]) or load(*a, **k))
    for r in range(12):
        assert call(f"--model_pth {WEIGHTS} --eval --num_prune {r} --if_order --check") == 0
    assert len(made) == 2 and len(read) == 1  # with the model's own head, and with the data's
    out = capsys.readouterr().out
    assert out.count("ready: digits: 360 images to evaluate") == 12


def test_a_meta_model_merges_as_each_command_says():
    counts = [TASK.meta_model(parse(["--num_prune", r, "--if_order"])[0]).num_tokens[-1] for r in ("0", "12", "4")]
    assert counts == [65, 41, 57]


def test_weights_are_compared_without_memory():
    with torch.device("meta"):
        model = build_model(parse(["--merge_method", "none"])[0], None)
    report = load_weights(model, WEIGHTS)
    assert report.num_tensors == len(model.state_dict())
    assert all(value.is_meta for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--data-set IMNET --data-path nowhere --eval", "nowhere"),
        ("--model_pth nowhere.pth", "nowhere.pth does not exist"),
        (f"--model vim_tiny_patch16_224 --model_pth {WEIGHTS} --merge_method none", "does not fit"),
        ("--batch-size 1438 --mixup 0 --cutmix 0", "less than one batch"),
        ("--nb_classes 11", "digits has 10 classes"),
        ("--dry_run", "not allowed with"),
    ],
)
def test_what_would_fail_is_said_in_a_line(line, message, capsys, tmp_path):
    assert call(f"{line} --check") == 2
    error = [text for text in capsys.readouterr().err.splitlines() if not text.startswith("note: ")]
    assert error[0].startswith("error: ") and message in error[0]
    assert not list(tmp_path.iterdir())


def test_the_number_of_processes_is_the_launchers(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "20")
    monkeypatch.setenv("RANK", "0")
    assert call(f"{GOOD} --repeated_aug False") == 2
    assert "each of 20 processes 71" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_found(tmp_path, capsys):
    for split in ("train", "val"):
        for name in "ab":
            folder = tmp_path / "own" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(folder / "1.png")
    line = "--data_set folder --data_path own --batch_size 2 --input_size 16 --eval --merge_method none --check"
    assert call(line) == 0
    for file in (tmp_path / "own" / "val").rglob("*.png"):
        file.write_bytes(b"no image")
    assert call(f"{line} --seed 1") == 2, "data of the same settings is opened once in a process"
    assert "of the first eval batch" in capsys.readouterr().err


def test_a_run_folder_that_is_in_the_way_is_found(tmp_path, capsys):
    folder = tmp_path / "log" / "x"
    folder.mkdir(parents=True)
    shutil.copy(WEIGHTS, folder)
    assert call(f"{GOOD} --name x") == 2
    assert "log/x exists already" in capsys.readouterr().err


def test_commands_are_printed_and_checked_until_one_fails(capfd):
    words = ["--", "first  line", "-m", "image_task.main", "--dry_run"]
    words += ["--", "second", "-m", "image_task.main", "--r", "-3", "--dry_run", *words]
    assert dry_runs.main(words) == 2
    out, err = capfd.readouterr()
    assert out.splitlines() == ["first  line", "second"]
    assert err.startswith("error: --r -3")
    assert dry_runs.main([]) == 0
