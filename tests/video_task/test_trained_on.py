"""What weights of clips were trained on travels with them: class names, frames, size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("av")

from tests import forked  # noqa: E402
from video_task.flags import parse  # noqa: E402
from video_task.main import main, run  # noqa: E402
from video_task.predict import main as predict  # noqa: E402

MODEL = "--model videomamba_video_nano_patch4_32 --num_frames 4 --input_size 24 --num_workers 0 --device cpu"
SHORT = "--batch_size 4 --max_train_batches 2 --epochs 1 --warmup_epochs 0 --lr 1e-2 --num_sample 1"
VIEWS = "--test_num_segment 1 --test_num_crop 1"
DATA = "--data_set folder --data_path {} --num_workers 0 --device cpu"


@pytest.fixture(scope="module")
def trained(_encoded, tmp_path_factory) -> Path:
    """A folder that holds videos/ of the classes ant and bee, and the run log/dense that was trained on them."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(_encoded, folder / "videos")
    line = f"{MODEL} {SHORT} {VIEWS} {DATA.format(folder / 'videos')} --output_dir {folder / 'log'} --name dense"
    assert forked.run(1, lambda: main([*line.split(), "--merge_method", "none"])) == [0]
    return folder


@pytest.fixture(autouse=True)
def own_folder(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def evaluated(words: str) -> dict:
    line = f"--model_pth log/dense {VIEWS} {words} --eval --num_workers 0 --device cpu --output_dir log"
    return run(parse(line.split())[0])


def test_the_run_says_what_it_was_trained_on_and_that_is_used_again():
    known = json.loads(Path("log/dense/config.json").read_text())["trained_on"]
    assert known["label_names"] == ["ant", "bee"] and known["input_size"] == [3, 4, 24, 24]
    config, _, notes = parse("--model_pth log/dense --eval --data_set folder --data_path videos".split())
    assert (config.data.num_frames, config.data.input_size) == (4, 24)
    assert any("--num_frames 4 --input_size 24: as the weights were trained" in note for note in notes)


def test_an_answer_has_the_class_names(capsys):
    assert predict(["videos/val/ant", "--model_pth", "log/dense", "--json", "--device", "cpu"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 3 and {top["label"] for top in answers[0]["top"]} == {"ant", "bee"}


def test_classes_keep_their_numbers_by_name():
    whole = evaluated("--data_set folder --data_path videos --name whole")
    bees = Path("bees/val/bee")
    shutil.copytree("videos/val/bee", bees)
    shutil.copytree("videos/train/bee", "bees/train/bee")
    shutil.rmtree("videos/val/bee")
    ants = evaluated("--data_set folder --data_path videos --name ants")
    bees = evaluated("--data_set folder --data_path bees --name bees")
    assert ants["count"] == bees["count"] == 3
    assert ants["top1"] + bees["top1"] == pytest.approx(2 * whole["top1"])


def test_classes_that_the_weights_do_not_know_are_refused(capsys):
    for split in ("train", "val"):
        Path("videos", split, "bee").rename(Path("videos", split, "wasp"))
    line = "--model_pth log/dense --data_set folder --data_path videos --num_workers 0 --device cpu --eval --name x"
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert "1 classes that the weights do not know, such as wasp; they know 2, such as ant" in error
