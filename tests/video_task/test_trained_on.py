"""What weights of clips were trained on travels with them: class names, frames, size."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch

pytest.importorskip("av")

from tests import forked  # noqa: E402
from video_task import export  # noqa: E402
from video_task.flags import parse  # noqa: E402
from video_task.main import main, run  # noqa: E402
from video_task.models import load  # noqa: E402
from video_task.predict import main as predict  # noqa: E402

SHAPE = "--tubelet_size 2 --num_frames 4 --input_size 24"
MODEL = f"--model videomamba_video_nano_patch4_32 {SHAPE} --num_workers 0 --device cpu"
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


def answers(weights: str, capsys) -> list[list[tuple]]:
    line = f"videos/val/ant --model_pth {weights} {VIEWS} --json --device cpu"
    assert predict(line.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    return [[(top["label"], top["probability"]) for top in json.loads(line)["top"]] for line in lines]


def test_a_run_becomes_a_model_folder_that_says_all_of_it(capsys):
    assert export.main(["log/dense", "model"]) == 0
    assert capsys.readouterr().out.splitlines() == ["model/config.json", "model/model.safetensors"]
    described = json.loads(Path("model/config.json").read_text())
    assert described["label_names"] == ["ant", "bee"] and described["model_args"]["tubelet_size"] == 2
    assert described["pretrained_cfg"]["interpolation"] == "bilinear"
    assert answers("model", capsys) == answers("log/dense", capsys)
    clip = torch.randn(2, 3, 4, 24, 24)
    of_timm = timm.create_model("local-dir:model", pretrained=True).eval()
    assert torch.equal(load("model").eval()(clip), of_timm(clip))
    found = evaluated("--data_set folder --data_path videos --name of-run")
    line = f"--model_pth model {VIEWS} --data_set folder --data_path videos --eval --num_workers 0 --device cpu"
    assert run(parse(line.split())[0])["top1"] == found["top1"]
    assert export.main(["model", "again"]) == 0
    assert Path("again/config.json").read_text() == Path("model/config.json").read_text()


def test_an_export_that_cannot_be_is_one_line(capsys, monkeypatch):
    for words, said in (
        (["nowhere", "model"], "nowhere is no folder; give that of a run."),
        (["videos", "model"], "videos is no run and no model folder: it has no config.json."),
        (["log/dense", "log/dense"], "log/dense has config.json already; give another folder"),
    ):
        assert export.main(words) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert export.main(["log/dense", "model", "--onnx"]) == 2
    assert "pip install onnx onnxscript" in capsys.readouterr().err and not Path("model").exists()


def test_onnx_and_packages_are_written_beside_it(monkeypatch, capsys):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    packed = []
    monkeypatch.setattr("rmeeto.cli.export.to_package", lambda model, path: packed.append(path))
    assert export.main(["log/dense", "model", "--onnx", "--package"]) == 0
    assert packed == [Path("model/model.pt2")]
    session = runtime.InferenceSession("model/model.onnx")
    clip = torch.randn(2, 3, 4, 24, 24)
    (logits,) = session.run(None, {"clips": clip.numpy()})
    assert torch.allclose(load("model").eval()(clip), torch.from_numpy(logits), atol=1e-5)


def test_class_folders_are_matched_with_a_head_that_names_no_classes(tmp_path):
    state = torch.load("log/dense/best.pt", weights_only=True)["model"]
    state |= {f"head.{name}": state[f"head.{name}"].flip(0) for name in ("weight", "bias")}
    torch.save(state, tmp_path / "other.pth")
    (tmp_path / "names.txt").write_text("bee\nant\n")
    line = f"{MODEL} {VIEWS} --eval --model_pth {tmp_path / 'other.pth'} --data_set folder --data_path videos"
    found = [
        run(parse(f"{line} --output_dir log --name {name} {extra}".split())[0])["top1"]
        for name, extra in (("as-is", ""), ("by-name", f"--class_names {tmp_path / 'names.txt'}"))
    ]
    assert found[0] != found[1]
    assert found[1] == evaluated("--data_set folder --data_path videos --name whole")["top1"]
