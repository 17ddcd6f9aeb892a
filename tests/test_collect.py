"""exp_sh/collect.py: only what was run enters the README, and with its record."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from image_task.flags import parse
from image_task.main import run

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("collect", ROOT / "exp_sh" / "collect.py")
collect = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(collect)

README = """# Recipes

| 2 | tiny | <!-- ours: tab2/vim_tiny_* -->not yet measured<!-- /ours --> |
| 5 | eval | <!-- ours: tab5/*-eval -->not yet measured<!-- /ours --> |
| 5 | train | <!-- ours: tab5/* !tab5/*-eval -->not yet measured<!-- /ours --> |
| 9 | not a cell | not yet measured |
"""
TINY, SMALL = "vim_tiny_patch16_224", "vim_small_patch16_224"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """exp_sh/ of a repository with run folders in runs/."""
    folder = tmp_path / "exp_sh"
    folder.mkdir()
    (folder / "README.md").write_text(README)
    (tmp_path / "runs").mkdir()
    return folder


@pytest.fixture
def finish(tmp_path: Path):
    """Make the folder of a finished run, with changes to its files."""

    def make(
        name: str, top1: float = 75.31, result: dict | None = None, run: dict | None = None, **data
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        files = {
            "result": {
                "top1": top1,
                "top5": 92.0,
                "loss": 1.0,
                "count": 50_000,
                "unreadable": 0,
                **(result or {}),
            },
            "config": {
                "data": {"data_set": "IMNET", "max_train_batches": 0, "max_eval_batches": 0, **data},
                "run": {"smoke": False, "seed": 0, "amp": "auto", **(run or {})},
            },
            "env": {
                "command": ["python", "image_task/main.py", "--data-path", "/data/me/imagenet"],
                "commit": "0123abc",
                "device": "H100",
                "processes": 8,
                "torch": "2.9.0",
            },
        }
        for stem, content in files.items():
            (folder / f"{stem}.json").write_text(json.dumps(content))
        return folder

    return make


def cells(here: Path) -> list[str]:
    return [line.split("|")[3].strip() for line in (here / "README.md").read_text().splitlines()[2:]]


def shown(here: Path) -> list[str]:
    return [cell.split("-->")[1].split("<!--")[0] if "-->" in cell else cell for cell in cells(here)]


def test_finished_runs_fill_their_cells_and_leave_their_record(here, finish):
    finish(f"tab2/{TINY}-r5", 75.314, {"epochs": 30})
    finish(f"tab2/{TINY}-r5-eval", 38.2)
    finish(f"tab5/{SMALL}-r11-shuffle0.3-eval", 60.0, {"unreadable": 2})
    finish(f"tab5/{SMALL}-r11-shuffle0.3", 77.0, {"epochs": 3, "ema": {"top1": 77.5}})
    assert collect.main(["--write"], here) == 0
    assert shown(here) == [
        "vim_tiny-r5 75.31<br>vim_tiny-r5-eval 38.20",
        "vim_small-r11-shuffle0.3-eval 60.00 (2 unreadable)",
        "vim_small-r11-shuffle0.3 77.00 (EMA 77.50)",
        "not yet measured",
    ]
    records = json.loads((here / "results.json").read_text())
    record = records[f"tab2/{TINY}-r5"]
    assert (record["top1"], record["epochs"], record["count"]) == (75.314, 30, 50_000)
    assert (record["commit"], record["device"], record["processes"], record["torch"]) == (
        "0123abc",
        "H100",
        8,
        "2.9.0",
    )
    assert record["command"] == ["python", "image_task/main.py", "--data-path", "imagenet"], (
        "no machine's paths"
    )
    assert records[f"tab2/{TINY}-r5-eval"]["epochs"] == 0


def test_nothing_is_written_unless_asked(here, finish, capsys):
    finish(f"tab2/{TINY}-r5", 75.31, {"epochs": 30})
    assert collect.main([], here) == 0
    assert (here / "README.md").read_text() == README
    assert not (here / "results.json").exists()
    assert f"tab2/{TINY}-r5: 75.31 (30 epochs, 8 x H100)" in capsys.readouterr().out


def test_without_runs_everything_stays_unmeasured(here, capsys):
    assert collect.main(["--write"], here) == 0
    assert (here / "README.md").read_text() == README
    assert not (here / "results.json").exists()
    assert "no finished runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": {"smoke": True}}, "a smoke run"),
        ({"max_train_batches": 2}, "limited to a few batches"),
        ({"max_eval_batches": 2}, "limited to a few batches"),
        ({"result": {"count": 3925}}, "evaluated on 3925 images, ImageNet-1K has 50000"),
        ({"data_set": "digits", "result": {"count": 360}}, "ran on the embedded digits"),
        ({"result": {"top1": None}}, "not a whole run folder"),
    ],
)
def test_what_is_no_measurement_is_named_and_left_out(changes, reason, here, finish, capsys):
    finish(f"tab2/{TINY}-r5", **changes)
    assert collect.main(["--write"], here) == 0
    assert (here / "README.md").read_text() == README
    assert reason in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["env.json", "config.json", "result.json"])
def test_a_damaged_folder_is_named_and_left_out(damage, here, finish, capsys):
    folder = finish(f"tab2/{TINY}-r5")
    (folder / damage).write_text("{")
    finish(f"tab2/{TINY}-r5-eval", 38.2)
    assert collect.main(["--write"], here) == 0
    assert shown(here)[0] == "vim_tiny-r5-eval 38.20"
    assert f"skipped {folder}: not a whole run folder" in capsys.readouterr().out


def test_an_unfinished_run_is_no_result(here, finish):
    (finish(f"tab2/{TINY}-r5") / "result.json").unlink()
    collect.main(["--write"], here)
    assert (here / "README.md").read_text() == README


def test_results_of_several_machines_add_up_and_a_newer_one_replaces(here, finish, tmp_path, capsys):
    finish(f"tab2/{TINY}-r5", 75.31)
    collect.main(["--write"], here)
    (tmp_path / "runs").rename(tmp_path / "first")
    finish(f"tab2/{TINY}-r5-eval", 38.2)
    collect.main(["--write"], here)
    assert shown(here)[0] == "vim_tiny-r5 75.31<br>vim_tiny-r5-eval 38.20"
    (tmp_path / "runs").rename(tmp_path / "second")
    finish(f"tab2/{TINY}-r5", 75.4)
    assert "replaced" not in capsys.readouterr().out
    collect.main(["--write"], here)
    assert shown(here)[0] == "vim_tiny-r5 75.40<br>vim_tiny-r5-eval 38.20"
    assert f"replaced tab2/{TINY}-r5: 75.31 -> 75.40" in capsys.readouterr().out
    assert "<!-- ours: tab2/vim_tiny_* -->" in cells(here)[0]


def test_runs_of_no_row_are_named(here, finish, capsys):
    finish("log/mine")
    collect.main(["--write"], here)
    assert "log/mine belongs to no row" in capsys.readouterr().out
    assert (here / "README.md").read_text() == README


def test_names_are_in_the_order_of_their_numbers():
    names = [f"tab11/vim_tiny-r{r}-eval" for r in (11, 5, 10, 1)]
    assert [name.split("-")[1] for name in sorted(names, key=collect.natural)] == ["r1", "r5", "r10", "r11"]


def test_a_folder_that_is_not_there_is_an_error(here, capsys):
    assert collect.main(["nowhere"], here) == 2
    assert capsys.readouterr().err == "error: nowhere is no folder; give one that holds run folders.\n"


def test_a_run_of_the_engine_is_understood(tmp_path):
    line = "--device cpu --num_workers 0 --num_prune 12 --if_order --eval --name merged"
    run(parse([*line.split(), "--output_dir", str(tmp_path / "digits")])[0])
    found, skipped = collect.collect([tmp_path])
    assert not skipped
    record = found["digits/merged"]
    assert (record["count"], record["epochs"], record["processes"], record["seed"]) == (360, 0, 1, 0)
    assert 0 <= record["top1"] <= 100 and record["torch"] == torch.__version__


def test_the_readme_says_what_the_records_say():
    folder = ROOT / "exp_sh"
    readme = (folder / "README.md").read_text()
    assert collect.CELL.search(readme)
    assert collect.render(readme, collect.read_records(folder / "results.json")) == readme
