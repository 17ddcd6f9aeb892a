"""The quick start: its settings are the recipes', and it does what the README says."""

import json
import subprocess
from pathlib import Path

import pytest

from image_task import quickstart
from image_task.config import Config
from image_task.flags import parse
from tests.recipes import plan
from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[2]


def recipe_settings() -> dict[str, Config]:
    """By arm, the settings of the recipe's commands."""
    configs = [config for config, _ in plan(ROOT / "image_task/exp_sh/digits/retrain.sh")]
    return {str(config.run.name).split("-")[0]: config for config in configs}


@pytest.mark.parametrize(
    ("arm", "flags"),
    [
        ("training_free", [*quickstart.MERGED, "--eval"]),
        ("retrained", [*quickstart.MERGED, *quickstart.TRAIN]),
        ("control", quickstart.TRAIN),
    ],
)
def test_settings_are_those_of_the_recipe(arm, flags):
    ours = parse([*quickstart.MODEL, "--model_pth", "x.pth", *flags])[0]
    theirs = recipe_settings()[arm]
    assert (ours.merge, ours.data, ours.optim) == (theirs.merge, theirs.data, theirs.optim)
    assert (ours.distill, ours.run.eval) == (theirs.distill, theirs.run.eval)
    assert (ours.model.model, ours.model.drop_path) == (theirs.model.model, theirs.model.drop_path)


def test_quickstart_runs_every_arm_and_keeps_an_older_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "TRAIN", [*quickstart.TRAIN, "--epochs", "1", "--max_train_batches", "2"])
    monkeypatch.setattr(quickstart, "SPEED_MODEL", "vim_nano_patch2_16")
    monkeypatch.setattr(quickstart, "SPEED_SIZE", 16)
    folder = tmp_path / "quickstart"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep me")
    (folder / "summary.json").write_text('{"quickstart": "not finished"}')
    assert quickstart.main(["--output_dir", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["dense"] >= summary["training_free"] + 10
    assert summary["token_counts"] == [65, 65, 53, 53, 41, 41]
    assert {"dense", "merged", "ratio", "input"} <= set(summary["throughput"])
    assert summary["retrained"] != summary["training_free"]
    assert (folder / "merged.png").stat().st_size > 5_000
    assert (tmp_path / "quickstart-1" / "mine.txt").read_text() == "keep me"
    assert "merged (r = 12), training-free" in capsys.readouterr().out


def test_weights_that_are_not_there_are_one_line(tmp_path):
    command = [PYTHON, "-m", "image_task.quickstart", "--weights", "none.pth"]
    command += ["--output_dir", str(tmp_path / "o")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: weights: none.pth does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()
