"""The whole way on one's own pictures."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from image_task.defaults import BODY, PEAK, STEPS, recipe, small_size
from image_task.finetune import FinetuneConfig, _command, _smaller, export_whole, main
from image_task.flags import parse
from image_task.models import export, load
from image_task.split import make_split
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from tests.photographs import OTHERS, OWN, make_folder

MODEL = "--model vim_nano_patch2_16 --num_workers 0 --batch_size 4"


def make_pictures(folder: Path) -> Path:
    """Red, green and blue noise: four pictures a class to train, two to evaluate."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for channel, name in enumerate(("red", "green", "blue")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 80, (20, 24, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.mark.slow
def test_one_command_makes_a_model_that_knows_its_classes_and_its_input(tmp_path):
    pictures, out = make_pictures(tmp_path / "photos"), tmp_path / "out"
    line = f"{MODEL} --r 12 --epochs 2 --retrain_epochs 1 --input_size 12"
    assert main([str(pictures), *line.split(), "--output_dir", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert {"dense", "training_free", "retrained", "merged_images_per_s", "seconds"} <= summary.keys()
    assert (out / "merged.png").stat().st_size > 0

    described = json.loads((out / "model" / "config.json").read_text())
    assert described["label_names"] == summary["classes"] == ["blue", "green", "red"]
    cfg = described["pretrained_cfg"]
    assert cfg["input_size"] == [3, 12, 12] and cfg["crop_pct"] == 1.0
    assert cfg["mean"] == pytest.approx((0.485, 0.456, 0.406)) and cfg["std"] == pytest.approx((0.229, 0.224, 0.225))
    model = load(out / "model").eval()
    assert model.num_tokens == summary["token_counts"] and model.num_tokens[-1] < model.num_tokens[0]
    of_timm = timm.create_model(f"local-dir:{out / 'model'}", pretrained=True).eval()
    image = torch.randn(1, 3, 12, 12)
    assert torch.equal(model(image), of_timm(image)) and model(image).shape == (1, 3)


def test_mistakes_are_one_line_and_leave_nothing(tmp_path, capsys):
    line = f"{MODEL} --r 12 --output_dir {tmp_path / 'out'}".split()
    assert main([str(tmp_path / "nowhere"), *line]) == 2
    assert "is no folder; give one of pictures" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "dense").mkdir(parents=True)
    assert main([str(tmp_path), *line]) == 2
    assert "is not empty; give another" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert main([str(tmp_path), *f"{MODEL} --r 12 --output_dir {tmp_path / 'file'}".split()]) == 2
    assert "file is no folder; give a new one." in capsys.readouterr().err


@pytest.mark.parametrize(("there", "wanted"), [("train", "val"), ("val", "train"), ("validation", "train")])
def test_a_folder_that_is_divided_by_half_is_refused(there, wanted, tmp_path, capsys):
    (tmp_path / "photos" / there / "red").mkdir(parents=True)
    assert main([str(tmp_path / "photos"), *f"{MODEL} --r 12 --output_dir {tmp_path / 'out'}".split()]) == 2
    assert f"is divided, but has no {wanted}/; give both parts, or the classes alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("num_train", "trained", "batch", "epochs"),
    [
        (180, False, 8, 12),
        (180, True, 8, 10),
        (10_000, False, 64, 30),
        (10_000, True, 64, 5),
        (5, False, 5, 250),
    ],
)
def test_the_recipe_follows_the_number_of_pictures(num_train, trained, batch, epochs):
    chosen = recipe(num_train, trained=trained)
    for flags in (chosen.dense, chosen.retrained):
        words = [word for name, value in flags.items() for word in (f"--{name}", value)]
        config, _, notes = parse([*words, "--data_set", "folder", "--model_pth", "x", *(["--delete_head"] * trained)])
        assert config.data.batch_size == batch and notes == []
        assert config.data.mixes == (num_train >= 1000)
    peak = float(chosen.dense["lr"]) * batch / 512
    assert peak == pytest.approx(BODY if trained else PEAK, rel=1e-3)
    assert int(chosen.dense["epochs"]) == epochs and 3 <= int(chosen.retrained["epochs"]) <= epochs
    assert int(chosen.dense["epochs"]) * (num_train // batch) >= (0 if trained else STEPS)
    assert ("head_lr_scale" in chosen.dense) == trained


def test_what_is_said_of_the_recipe_counts():
    chosen = recipe(180, trained=False, batch_size=32, epochs=3, retrain_epochs=1, lr=1e-4)
    assert chosen.dense["batch_size"] == "32" and chosen.dense["epochs"] == "3"
    assert chosen.retrained["epochs"] == "1" and float(chosen.dense["lr"]) == pytest.approx(1e-4 * 16)


@pytest.mark.parametrize(
    ("own", "patch", "size"), [(224, 16, 64), (16, 2, 16), (518, 14, 56), (224, 8, 64), (384, 32, 128)]
)
def test_a_cpu_trains_from_scratch_on_a_smaller_input(own, patch, size):
    assert small_size(own, patch) == size


@pytest.mark.parametrize(
    ("merge", "smaller"),
    [
        (MergeConfig(r=11), MergeConfig(r=1)),
        (MergeConfig(r=(30, 0, 60)), MergeConfig(r=(3, 0, 5))),
        (MergeConfig(r=(30, -0.5)), MergeConfig(r=(3, -0.5))),
        (MergeConfig(r=0.05, final_tokens=76), MergeConfig(r=0.05, final_tokens=7)),
    ],
)
def test_of_a_smaller_input_the_same_share_is_merged(merge, smaller, capsys):
    settings, found = _smaller(FinetuneConfig(model="vim_tiny_patch16_224", device="cpu"), merge)
    assert (settings.input_size, found) == (64, smaller)
    assert "17 tokens of 197" in " ".join(capsys.readouterr().out.split())


def test_an_export_that_was_cut_short_is_made_again(tmp_path, monkeypatch):
    model, folder, onnx = timm.create_model("vim_nano_patch2_16", num_classes=3), tmp_path / "model", []
    folder.mkdir()

    def full(model, folder, onnx):
        folder.mkdir()
        (folder / "model.safetensors").touch()
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("image_task.finetune.write", full)
        with pytest.raises(UserError):
            export_whole(model, folder, False)
    assert not any(folder.iterdir())
    export_whole(model, folder, False)
    assert load(folder).num_classes == 3 and [path.name for path in tmp_path.iterdir()] == ["model"]
    monkeypatch.setattr("image_task.finetune.write_onnx", lambda model, folder: onnx.append(folder))
    export_whole(model, folder, True)
    assert onnx == [folder], "what was not asked for before"


def test_a_folder_of_classes_alone_is_divided(tmp_path, capsys):
    pictures = make_pictures(tmp_path / "photos") / "train"
    split = make_split(pictures, tmp_path / "split")
    assert "has no train/ and val/: 3 of its 12 pictures are" in capsys.readouterr().out
    for part, count in (("train", 9), ("val", 3)):
        links = sorted((split / part).glob("*/*"))
        assert len(links) == count and all(link.resolve().is_relative_to(pictures.resolve()) for link in links)
    assert make_split(pictures, split) == split
    (tmp_path / "alias").symlink_to(pictures)
    assert make_split(tmp_path / "alias", split) == split, "the same pictures by another path"
    others = make_pictures(tmp_path / "others") / "train"
    with pytest.raises(UserError, match="links to pictures outside .*others"):
        make_split(others, split)
    (pictures / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds 0"):
        make_split(pictures, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    first = next((pictures / "empty").parent.glob("*/*.*"))
    for path in ("a/b.jpg", "a-b.jpg", "a/c.jpg"):  # two of them get one name
        (pictures / "empty" / path).parent.mkdir(exist_ok=True)
        shutil.copy(first, pictures / "empty" / path)
    whole = make_split(pictures, tmp_path / "other")  # from the start: what was cut short is no split
    assert len(list(whole.glob("*/*/*"))) == 15
    shutil.rmtree(pictures / "empty")
    (pictures / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds 0 pictures; expected at least 2"):
        make_split(pictures, tmp_path / "third")


def test_files_that_are_no_pictures_are_counted_when_a_folder_is_divided(tmp_path, caplog):
    pictures = make_pictures(tmp_path / "photos") / "train"
    for number in range(4):
        (pictures / "red" / f"{number}.heic").touch()
    make_split(pictures, tmp_path / "split")
    assert "4 files are left out (other endings)" in caplog.text and "0.heic" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model rmeeto_deit_tiny_patch16_224 --r 8 --metric B", "metric"),
        (f"{MODEL} --input_size 12 --r 8 --interval 30", "interval"),
        (f"{MODEL} --input_size 12 --r 3 --onnx", "onnxscript"),
    ],
)
def test_what_a_later_step_would_refuse_is_refused_before_the_training(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("image_task.finetune.run", lambda config: pytest.fail("a training began"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    pictures = make_pictures(tmp_path / "photos")
    assert main([str(pictures), *flags.split(), "--output_dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_commands_are_shown_in_80_columns():
    lines = _command(["--data_path", "a folder of mine", *[w for n in range(30) for w in (f"--flag_{n}", "value")]])
    assert max(map(len, lines)) <= 80 and all(line.endswith(" \\") for line in lines[:-1])
    words = shlex.split(" ".join(line.removesuffix(" \\") for line in lines))
    assert words[:5] == ["python", "-m", "image_task.main", "--data_path", "a folder of mine"]


def test_nothing_to_merge_and_no_folder_are_said(capsys):
    assert main(["photos"]) == 2
    assert "give --r" in capsys.readouterr().err
    assert main(["--r", "3"]) == 2
    assert "no folder of pictures is given" in capsys.readouterr().err
    assert main(["photos", "--r", "3", "--mdel", "x"]) == 2
    assert "did you mean --model?" in capsys.readouterr().err


def test_a_folder_of_weights_says_its_model(tmp_path, monkeypatch):
    export(timm.create_model("vim_nano_patch2_16", img_size=12, num_classes=3, depth=3), tmp_path / "m")
    ways = []
    monkeypatch.setattr("image_task.finetune.finetune", lambda pictures, way, merge: ways.append(way))
    weights = ["--model_pth", str(tmp_path / "m")]
    assert main(["photos", "--r", "3", *weights]) == main(["photos", "--r", "3", "--model", "deit_tiny", *weights]) == 0
    assert [way.model for way in ways] == ["vim_nano_patch2_16", "deit_tiny"]


@pytest.mark.slow
@pytest.mark.parametrize(("photographs", "seed"), [(OWN, 0), (OTHERS, 1)])
def test_the_way_of_the_readme_from_nothing(tmp_path, photographs, seed, monkeypatch):
    """The command of README on a folder of one's own: three classes, 180 photographs, in under three minutes."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "photos", photographs, seed)
    line = "photos --model vim_tiny_patch16_224 --r 11 --output_dir runs/photos --num_workers 0"
    began = time.process_time()
    assert main(line.split()) == 0
    seconds = time.process_time() - began
    summary = json.loads(Path("runs/photos/summary.json").read_text())
    assert summary["dense"] >= 90 and summary["retrained"] >= summary["dense"] - 3
    assert seconds < 180  # of one core, which the machine may share with others
    assert summary["token_counts"][-1] < summary["dense_tokens"] and summary["merged_images_per_s"] > 0
    assert Path("runs/photos/merged.png").stat().st_size > 0
    assert load("runs/photos/model").num_tokens == summary["token_counts"]
