"""The quick start on clips: its settings are the recipes', and it does what the README says."""

import json

import pytest
from PIL import Image

pytest.importorskip("av")

from tests.recipes import ROOT, launch, task_arguments  # noqa: E402
from video_task import quickstart  # noqa: E402
from video_task.data.digits import EMBEDDED, write_digits  # noqa: E402
from video_task.flags import parse  # noqa: E402
from video_task.main import run  # noqa: E402

RECIPES = ROOT / "video_task" / "exp_sh" / "digits"


@pytest.fixture(name="recipe")
def commands_of_the_recipe(tmp_path):
    """The settings of retrain.sh's commands, by arm."""
    process, commands = launch(RECIPES / "retrain.sh", tmp_path, DRY_RUN="1")
    assert process.returncode == 0, process.stderr
    configs = [parse(task_arguments(command))[0] for command in commands]
    return {config.run.name.split("-")[0]: config for config in configs}


@pytest.mark.parametrize(
    ("arm", "flags"),
    [
        ("training_free", [*quickstart.MERGED, "--eval"]),
        ("retrained", [*quickstart.MERGED, *quickstart.TRAIN]),
        ("control", quickstart.TRAIN),
    ],
)
def test_settings_are_those_of_the_recipe(arm, flags, recipe):
    theirs = recipe[arm]
    places = ["--data_path", theirs.data.data_path, "--model_pth", theirs.model.model_pth]
    ours, _, notices = parse([*quickstart.MODEL, *places, *flags])
    assert not notices
    assert (ours.model, ours.merge, ours.data) == (theirs.model, theirs.merge, theirs.data)
    assert (ours.optim, ours.distill, ours.run.eval) == (theirs.optim, theirs.distill, theirs.run.eval)


def test_a_recipe_encodes_its_clips_once_and_not_in_a_dry_run(tmp_path):
    _, dry = launch(RECIPES / "dense.sh", tmp_path, DRY_RUN="1")
    assert "video_task.data.digits" not in [command[2] for command in dry]
    clips = tmp_path / "runs" / "digits-video" / "clips"
    part = clips.with_name("clips.part")
    part.mkdir(parents=True)  # in the stand-in's place
    _, commands = launch(RECIPES / "dense.sh", tmp_path)
    assert [command[2] for command in commands] == ["video_task.data.digits", "video_task.main"]
    assert commands[0][3] == str(part) and clips.is_dir() and not part.exists()
    _, commands = launch(RECIPES / "dense.sh", tmp_path)
    assert [command[2] for command in commands] == ["video_task.main"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The validation clips of the embedded default."""
    folder = tmp_path_factory.mktemp("clips")
    write_digits(folder, **{**EMBEDDED, "num_train": 0})
    return folder


@pytest.mark.parametrize(("name", "merged"), [("dense", []), ("retrained", quickstart.MERGED)])
def test_shipped_weights_have_the_recorded_accuracy(name, merged, clips, tmp_path):
    weights = ["--model_pth", str(RECIPES / f"{name}.safetensors"), "--eval", "--output_dir", str(tmp_path)]
    one_view = ["--data_path", str(clips), "--test_num_segment", "1", "--test_num_crop", "1"]
    result = run(parse([*quickstart.MODEL, *one_view, *weights, *merged])[0])
    recorded = json.loads((RECIPES / "results" / f"{name}-seed1" / "result.json").read_text())["validation"]
    assert result["count"] == recorded["count"] == 300
    # Two of 300 videos may fall the other way on another machine's arithmetic.
    assert result["top1"] == pytest.approx(recorded["top1"], abs=0.67)


def test_quickstart_runs_every_arm_and_keeps_an_older_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "EMBEDDED", {**quickstart.EMBEDDED, "num_train": 4, "num_val": 3})
    monkeypatch.setattr(quickstart, "TRAIN", [*quickstart.TRAIN, "--epochs", "1", "--max_train_batches", "2"])
    monkeypatch.setattr(quickstart, "SPEED_MODEL", "videomamba_video_nano_patch4_32")
    monkeypatch.setattr(quickstart, "SPEED_SIZE", 32)
    folder = tmp_path / "quickstart"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep me")
    (folder / "summary.json").write_text('{"quickstart": "not finished"}')
    assert quickstart.main(["--output_dir", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    for arm in ("dense", "training_free", "retrained", "control"):
        assert summary[arm] == json.loads((folder / arm / "result.json").read_text())["top1"]
    assert summary["dense"] > summary["training_free"]
    assert summary["token_counts"] == [145, 145, 85, 85, 43, 43]  # no merge takes more than half
    assert {"dense", "merged", "ratio", "input"} <= set(summary["throughput"])
    losses = [json.loads((folder / arm / "result.json").read_text())["loss"] for arm in ("training_free", "retrained")]
    assert losses[0] != losses[1]  # two steps are enough to differ
    views = folder / "retrained" / "views" / "rank0.npz"
    assert views.exists()
    assert (folder / "merged.png").stat().st_size > 5_000
    with Image.open(folder / "merged.gif") as animation:
        assert animation.n_frames == 8
    assert (tmp_path / "quickstart-1" / "mine.txt").read_text() == "keep me"
    assert f"merged (r = {quickstart.R}), training-free" in capsys.readouterr().out


def test_weights_that_are_not_there_are_one_line(tmp_path, capsys):
    assert quickstart.main(["--weights", "none.pth", "--output_dir", str(tmp_path / "o")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: weights: none.pth does not exist")
    assert not (tmp_path / "o").exists()
