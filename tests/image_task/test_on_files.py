"""`predict` and `visualize` on pictures: any checkpoint, run folder or model folder, any file that lies there."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

from image_task import predict, visualize
from image_task.config import Config
from image_task.data import build_data
from image_task.datasets import load_sources
from image_task.models import export, load_weights
from image_task.pictures import Preparation
from rmeeto import MergeConfig
from rmeeto.cli.answers import Answers
from rmeeto.cli.chosen import choose
from rmeeto.cli.on_files import output_paths
from rmeeto.engine.record import TRAINED_ON
from rmeeto.trained_on import TrainedOn

DIGITS = Path(__file__).resolve().parents[2] / "image_task" / "exp_sh" / "digits"
RUN = DIGITS / "results" / "retrained-seed0"
NANO = ["--model", "vim_nano_patch2_16", "--model_pth", str(DIGITS / "dense.safetensors"), "--device", "cpu"]
NAMES = [f"the {digit}" for digit in range(10)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Ten digits, 0.png to 9.png, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    scans = load_digits()
    for digit in range(10):
        scan = scans.images[scans.target == digit][0]
        Image.fromarray((scan * (255 / 16)).round().astype(np.uint8)).save(folder / f"{digit}.png")
    (folder / "not-this.txt").write_text("left alone")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run's settings with the weights that it left, and names of its classes."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(RUN / "config.json", folder)
    model = timm.create_model("vim_nano_patch2_16")
    load_weights(model, DIGITS / "retrained.safetensors")
    known = TrainedOn((3, 16, 16), (0.5,) * 3, (0.5,) * 3, 1.0, label_names=tuple(NAMES), data_set="digits")
    torch.save({"model": model.state_dict(), TRAINED_ON: known.to_dict()}, folder / "best.pt")
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    model = timm.create_model("vim_nano_patch2_16", merge=MergeConfig(r=12))
    load_weights(model, DIGITS / "retrained.safetensors")
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": NAMES}
    return export(model, tmp_path_factory.mktemp("exported") / "model")


def answers(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", ["weights", "run", "file of a run", "model folder"])
def test_every_kind_of_model_reads_the_digits(kind, pictures, run_folder, model_folder, capsys):
    places = {"run": run_folder, "file of a run": run_folder / "best.pt", "model folder": model_folder}
    flags = NANO if kind == "weights" else ["--model_pth", str(places[kind])]
    assert predict.main([str(pictures), *flags, "--json"]) == 0
    found = answers(capsys.readouterr().out)
    assert [Path(answer["file"]).name for answer in found] == [f"{digit}.png" for digit in range(10)]
    assert sum(answer["index"] == digit for digit, answer in enumerate(found)) >= 9
    names = [str(digit) for digit in range(10)] if kind == "weights" else NAMES  # of the config.json beside them
    assert all(answer["label"] == names[answer["index"]] for answer in found)
    assert all(len(answer["top"]) == 5 and answer["top"][0]["label"] == answer["label"] for answer in found)


def test_a_model_merges_as_its_folder_says_unless_told_otherwise(run_folder, model_folder):
    from image_task.main import TASK

    for folder in (run_folder, model_folder):
        counts = [
            choose(TASK, ["--model_pth", str(folder), *more])[0].model.num_tokens[-1]
            for more in ([], ["--r", "20"], ["--merge_method", "none"])
        ]
        assert counts == [41, 25, 65]


def test_one_flag_changes_one_setting_of_how_a_model_merges(tmp_path):
    from image_task.main import TASK

    merge = MergeConfig(r=6, metric="B", class_position="exact")
    folder = str(export(timm.create_model("vim_nano_patch2_16", merge=merge), tmp_path / "model"))
    for flags, changed in ((["--interval", "3"], {"interval": 3}), (["--r", "4"], {"r": 4})):
        chosen, _ = choose(TASK, ["--model_pth", folder, *flags])
        assert chosen.model.merge_config == chosen.config.merge == dataclasses.replace(merge, **changed)


def test_a_model_that_sees_no_square_is_refused(pictures, tmp_path, capsys):
    folder = export(timm.create_model("vim_nano_patch2_16", img_size=(16, 24), num_classes=3), tmp_path / "model")
    assert predict.main([str(pictures), "--model_pth", str(folder)]) == 2
    assert "the model sees 16 x 24 pixels; expected one that sees a square" in capsys.readouterr().err


def test_a_runs_model_sees_what_its_evaluation_sees(run_folder):
    from image_task.main import TASK

    chosen, _ = choose(TASK, ["--model_pth", str(run_folder)])
    config: Config = chosen.config
    data = build_data(config.data, img_size=16, rank=0, world_size=1, seed=0, train=False)
    images, _ = next(iter(data.eval_batches()))
    picture, _ = load_sources(config.data, seed=0, train=False)[1].read(0)
    torch.testing.assert_close(Preparation(chosen)(picture), images[0])


def test_flags_and_a_folders_description_say_how_pictures_are_prepared(tmp_path):
    from image_task.main import TASK

    folder = str(export(timm.create_model("vim_nano_patch2_16", merge=MergeConfig(r=6)), tmp_path / "model"))
    described = json.loads((tmp_path / "model" / "config.json").read_text())
    described["pretrained_cfg"] |= {"mean": [0.3, 0.4, 0.5], "std": [0.2] * 3, "crop_pct": 0.9}
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    weights = str(tmp_path / "model" / "model.safetensors")
    for source in (["--model_pth", folder], ["--model", "vim_nano_patch2_16", "--model_pth", weights]):
        chosen, _ = choose(TASK, [*source, "--data_set", "FASHION"])
        assert chosen.config.data.mean == (0.3, 0.4, 0.5) and chosen.config.data.std == (0.2, 0.2, 0.2)
        own = Preparation(chosen)
        assert own.resized == 17  # 16 of 0.9, cut off as timm has it
        said = Preparation(choose(TASK, [*source, "--mean", "0.1", "0.1", "0.1", "--eval_crop_ratio", "0.5"])[0])
        assert said.resized == 32
        only_mean = Preparation(choose(TASK, [*source, "--mean", "0.1", "0.1", "0.1"])[0])
        shift = (torch.tensor([0.3, 0.4, 0.5]) - 0.1) / 0.2
        torch.testing.assert_close(only_mean(picture), own(picture) + shift[:, None, None])


def test_embeddings_go_into_an_archive(pictures, tmp_path, capsys):
    out = tmp_path / "out.npz"
    assert predict.main([str(pictures / "3.png"), str(pictures / "4.png"), *NANO, "--features", str(out)]) == 0
    assert "3.png: 3 " in capsys.readouterr().out
    with np.load(out) as kept:  # nothing pickled
        assert kept["features"].shape == (2, 32) and kept["probabilities"].shape == (2, 10)
        assert [Path(name).name for name in kept["files"]] == ["3.png", "4.png"]
        features, shares = torch.from_numpy(kept["features"]), torch.from_numpy(kept["probabilities"])
    model = timm.create_model("vim_nano_patch2_16").eval()
    load_weights(model, DIGITS / "dense.safetensors")
    torch.testing.assert_close(model.head(features).softmax(-1), shares, atol=1e-5, rtol=1e-4)
    assert predict.main([str(pictures / "3.png"), *NANO, "--features", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def refused(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_interrupt_keeps_the_answers_that_there_are(pictures, tmp_path, capsys, monkeypatch):
    out, say = tmp_path / "new" / "out.npz", Answers.say

    def interrupted(self, path, *arguments, **place):
        if path.name == "2.png":
            raise KeyboardInterrupt
        say(self, path, *arguments, **place)

    monkeypatch.setattr(Answers, "say", interrupted)
    assert predict.main([str(pictures), *NANO, "--features", str(out)]) == 130
    assert capsys.readouterr().err == f"{out} holds the 2 answers that there were until then\ninterrupted\n"
    with np.load(out) as kept:
        assert [Path(name).name for name in kept["files"]] == ["0.png", "1.png"]
    monkeypatch.setattr(np, "savez", refused)
    out = tmp_path / "full.npz"
    assert predict.main([str(pictures), *NANO, "--features", str(out)]) == 130
    assert "full.npz cannot be written: No space left on device; make room" in capsys.readouterr().err


def test_a_full_disk_leaves_no_piece_of_an_archive_or_a_sheet(pictures, tmp_path, capsys, monkeypatch):
    file, out = str(pictures / "3.png"), tmp_path / "out.npz"
    monkeypatch.setattr(np, "savez", refused)
    assert predict.main([file, *NANO, "--features", str(out)]) == 2
    assert f"--features {out} cannot be written: No space left" in capsys.readouterr().err
    monkeypatch.setattr(Image.Image, "save", refused)
    assert visualize.main([file, *NANO, "--r", "12", "--output", str(tmp_path)]) == 2
    assert "3-merged.png cannot be written: No space left on device; make room" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_before_it_begins(pictures, capsys, monkeypatch):
    monkeypatch.setattr(predict, "read_picture", None)
    monkeypatch.setattr(visualize, "read_picture", None)
    file = str(pictures / "3.png")
    assert predict.main([file, *NANO, "--features", "/proc/a/b.npz"]) == 2
    assert "--features /proc/a/b.npz cannot be written" in capsys.readouterr().err
    for folder in ("/proc", "/proc/a", file):
        assert visualize.main([file, *NANO, "--r", "12", "--output", folder]) == 2
        error = capsys.readouterr().err
        assert f"--output {folder}" in error and "give a file in a folder that can be used" in error


def test_a_name_to_which_no_ending_fits_is_cut_and_none_is_written_twice(pictures, tmp_path, capsys):
    long = "\u00e4" * 125 + ".png"  # 254 bytes
    for name in (long, "0.png", "0-2.png"):
        shutil.copy(pictures / "0.png", tmp_path / name)
    (tmp_path / "gone.png").symlink_to("nowhere")
    out = tmp_path / "out"
    assert visualize.main([str(tmp_path / "0.png"), str(tmp_path), *NANO, "--r", "12", "--output", str(out)]) == 2
    assert "gone.png: No such file or directory" in capsys.readouterr().err
    names = sorted(path.name for path in out.iterdir())
    assert names[:3] == ["0-2-merged.png", "0-3-merged.png", "0-merged.png"]
    assert len(names) == 4 and names[3].startswith("\u00e4" * 100)


def test_what_cannot_be_read_is_named_and_the_rest_is_answered(pictures, tmp_path, capsys):
    for name, content in (("a.png", b"no picture"), ("b\x1b[2J.jpg", (pictures / "1.png").read_bytes()[:60])):
        (tmp_path / name).write_bytes(content)
    shutil.copy(pictures / "7.png", tmp_path / "c.png")
    assert predict.main([str(tmp_path), *NANO, "--json"]) == 2
    done = capsys.readouterr()
    assert len(answers(done.out)) == 1 and "\x1b" not in done.out + done.err
    assert "a.png: no picture of JPEG" in done.err and "b\\x1b[2J.jpg" in done.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (NANO, "no pictures are given; they come first"),
        (["nowhere.png", *NANO], "nowhere.png does not exist"),
        (["PICTURES/0.png"], "no model is named"),
        (["PICTURES/0.png", "--model", "vim_nano_patch2_16"], "every answer is chance"),
        (["PICTURES/0.png", "--model_pth", "EMPTY"], "it has no config.json"),
        (["EMPTY", *NANO], "holds no pictures"),
        (["PICTURES/0.png", *NANO, "--modle", "x"], "unknown flag --modle; did you mean"),
        (["PICTURES/0.png", *NANO, "--top", "0"], "--top 0"),
        (["PICTURES/0.png", *NANO, "--features", "x.txt"], "ends in .npz"),
        (["PICTURES/0.png", *NANO, "--class_names", "PICTURES/not-this.txt"], "1 lines; expected 10"),
        (["PICTURES/0.png", "--model_pth", "EXPORTED", "--input_size", "32"], "--input_size has no effect"),
        (
            ["PICTURES/0.png", "--model_pth", "PICTURES", "--model", "vim_tiny_patch16_224"],
            "no run and no model folder",
        ),
    ],
)
def test_wrong_commands_are_told_what_to_do(argv, message, pictures, model_folder, tmp_path, capsys):
    places = {"PICTURES": pictures, "EMPTY": tmp_path, "EXPORTED": model_folder, "DIGITS": DIGITS}
    for name, path in places.items():
        argv = [word.replace(name, str(path)) for word in argv]
    assert predict.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) <= 3 and "Traceback" not in error


def test_a_sheet_for_each_picture(pictures, run_folder, tmp_path, capsys):
    flags = ["--model_pth", str(run_folder), "--output", str(tmp_path / "out")]
    assert visualize.main([str(pictures / "0.png"), str(pictures / "1.png"), str(pictures / "0.png"), *flags]) == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["0-2-merged.png", "0-merged.png", "1-merged.png"]
    assert "0-merged.png: the 0" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "0-merged.png") as sheet:
        assert sheet.width > 4 * 240
    assert visualize.main([str(pictures / "0.png"), *flags]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_no_two_files_share_an_output(tmp_path):
    """The second a becomes a-3: a-2 is the name of another file, which keeps it wherever it stands."""
    files = [Path(name) for name in ("a.jpg", "a.png", "a-2.png", "b/a.png", "a-2.jpg")]
    names = ["a", "a-3", "a-2", "a-4", "a-2-2"]
    assert [path.stem for path in output_paths(files, tmp_path, ".png", False)] == names
    assert [path.stem for path in output_paths(files[::-1], tmp_path, ".png", False)] == [
        "a-2",
        "a",
        "a-2-2",
        "a-3",
        "a-4",
    ]


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1)])
def test_a_picture_of_any_shape_is_drawn(size, tmp_path):
    Image.new("L", size, 200).save(tmp_path / "thin.png")
    assert visualize.main([str(tmp_path / "thin.png"), *NANO, "--r", "12", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "thin-merged.png").exists()


def test_a_random_model_is_drawn_and_says_so(pictures, tmp_path):
    flags = ["--model", "vim_nano_patch2_16", "--r", "12", "--output", str(tmp_path)]
    assert visualize.main([str(pictures / "5.png"), *flags]) == 0
    sheet = np.asarray(Image.open(tmp_path / "5-merged.png").convert("RGB"))
    assert (sheet[:40] == (170, 0, 0)).all(-1).mean() > 0.3


def test_a_model_that_merges_nothing_is_not_drawn(pictures, tmp_path, capsys):
    assert visualize.main([str(pictures / "5.png"), *NANO, "--output", str(tmp_path)]) == 2
    assert "merges nothing" in capsys.readouterr().err


def test_a_picture_is_drawn_in_its_own_pixels(run_folder):
    from image_task.main import TASK

    prepare = Preparation(choose(TASK, ["--model", "vim_tiny_patch16_224", "--r", "5"])[0])
    colours = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    seen = prepare.seen(Image.fromarray(colours), 1000)
    edge = round(300 * 224 / 256)  # the shorter side becomes 256 pixels, of which the middle 224 are seen
    top, left = (300 - edge) // 2, (400 - edge) // 2
    np.testing.assert_allclose(seen, colours[top : top + edge, left : left + edge] / 255)
    assert prepare.seen(Image.fromarray(colours), 100).shape == (100, 100, 3)


def test_a_model_of_one_channel_sees_pictures_in_grey(pictures, tmp_path, capsys):
    for channels in (1, 4):
        model = timm.create_model("vim_nano_patch2_16", in_chans=channels, depth=3, merge=MergeConfig(r=8))
        export(model, tmp_path / f"{channels}")
    grey = ["--model_pth", str(tmp_path / "1"), "--device", "cpu"]
    assert predict.main([str(pictures), *grey, "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    assert visualize.main([str(pictures / "3.png"), *grey, "--output", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out" / "3-merged.png").width > 400
    assert predict.main([str(pictures), "--model_pth", str(tmp_path / "4"), "--device", "cpu"]) == 2
    assert "images of 4 channels; pictures have 3, or 1 in grey" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224"])
def test_a_model_with_registers_is_drawn(name, pictures, tmp_path):
    line = f"--model {name} --input_size 56 --r 2 --device cpu --nb_classes 3 --output {tmp_path / 'out'}"
    assert visualize.main([str(pictures / "3.png"), *line.replace("56", "64" if "16_" in name else "56").split()]) == 0
    assert Image.open(tmp_path / "out" / "3-merged.png").width > 400
