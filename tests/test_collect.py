"""exp_sh/collect.py: only what was run enters the README, and with its record."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from image_task.flags import parse
from image_task.main import run
from tests.recipes import ROOT, TABLES, has_quirks, launch, plan, task_arguments, title
from tests.warm import PYTHON
from video_task.flags import parse as parse_video

VIDEO_TABLES = sorted((ROOT / "video_task" / "exp_sh").glob("tab*/*.sh"))
SPEC = importlib.util.spec_from_file_location("collect", ROOT / "exp_sh" / "collect.py")
collect = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(collect)

README = """# Recipes

| 2 | tiny | <!-- ours: tab2/vim_tiny_* -->not yet measured<!-- /ours --> |
| 5 | eval | <!-- ours: tab5/*-eval -->not yet measured<!-- /ours --> |
| 5 | train | <!-- ours: tab5/* !tab5/*-eval -->not yet measured<!-- /ours --> |
| 9 | not a cell | not yet measured |
| 13 | video | <!-- ours: tab13/videomamba_video_tiny_* -->not yet measured<!-- /ours --> |
"""
TINY, SMALL, VIDEO = "vim_tiny_patch16_224", "vim_small_patch16_224", "videomamba_video_tiny_patch16_224"
K400 = {"data_set": "Kinetics_sparse", "num_frames": 8, "test_num_segment": 4, "test_num_crop": 3}


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
    """Make the folder of a finished run, which is what its name says but for changes to its files."""

    def make(
        name: str,
        top1: float = 75.31,
        result: dict | None = None,
        run: dict | None = None,
        model: dict | None = None,
        r: int | list | None = None,
        **data,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        named = re.search(r"-r(\d+)", name)
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
                "model": {"model": folder.name.partition("-")[0], "model_pth": "a.pth", **(model or {})},
                "merge": {"r": r if r is not None else int(named[1])} if named or r is not None else None,
                "data": {"data_set": "IMNET", "max_train_batches": 0, "max_eval_batches": 0, **data},
                "run": {
                    "smoke": False,
                    "eval": name.endswith("-eval"),
                    "seed": 0,
                    "amp": "auto",
                    **(run or {}),
                },
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
    assert record["command"] == ["python", "image_task/main.py", "--data-path", "imagenet"], "no machine's paths"
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
        ({"holdout": 50_000}, "evaluated on training images that were held out"),
        ({"result": {"count": 3925}}, "evaluated on 3925 images, ImageNet-1K has 50000"),
        (
            {"data_set": "digits", "result": {"count": 360}},
            "its data_set is digits, tab2 takes IMNET",
        ),
        ({"data_set": "CIFAR", "result": {"count": 10_000}}, "its data_set is CIFAR, tab2 takes IMNET"),
        ({"data_set": "SUBIMNET"}, "its data_set is SUBIMNET, tab2 takes IMNET"),
        ({"model": {"model": SMALL}}, f"its model is {SMALL}, not {TINY}"),
        ({"model": {"model_pth": None}}, "ran without pre-trained weights"),
        ({"r": 11}, "its r is 11, its folder's name says r5"),
        ({"r": [5, 4]}, "its r is 5, 4, its folder's name says r5"),
        ({"r": 0}, "its r is 0, its folder's name says r5"),
        ({"run": {"eval": True}}, "it was only evaluated, its folder's name says otherwise"),
        ({"result": {"top1": None}}, "not a whole run folder"),
    ],
)
def test_what_is_no_measurement_is_named_and_left_out(changes, reason, here, finish, capsys):
    folder = finish(f"tab2/{TINY}-r5", **changes)
    assert collect.main(["--write"], here) == 0
    assert (here / "README.md").read_text() == README
    assert f"skipped {folder}: {reason}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data_set": "folder"}, "its data_set is folder, tab13 takes Kinetics or Kinetics_sparse"),
        ({"num_frames": 16}, "its num_frames is 16, tab13 takes 8"),
        ({"test_num_segment": 1}, "its test_num_segment is 1, tab13 takes 4"),
        ({"test_num_crop": 1}, "its test_num_crop is 1, tab13 takes 3"),
        ({"model": {"model": "videomamba_video_nano_patch4_32"}}, "its model is videomamba_video_nano"),
        ({"r": 40}, "its r is 40, its folder's name says r88"),
        ({"max_eval_batches": 1}, "limited to a few batches"),
    ],
)
def test_a_test_that_is_not_of_the_tables_videos_is_left_out(changes, reason, here, finish, capsys):
    folder = finish(f"tab13/{VIDEO}-r88", result={"count": 8}, **{**K400, **changes})
    assert collect.main(["--write"], here) == 0
    assert (here / "README.md").read_text() == README
    assert f"skipped {folder}: {reason}" in capsys.readouterr().out


def test_videos_stand_with_their_number(here, finish):
    finish(f"tab13/{VIDEO}-r88-eval", 75.4, {"count": 19_404, "unreadable": 3}, **K400)
    finish(f"tab13/{VIDEO}-r0-eval", 76.9, {"count": 19_404}, **K400)
    finish(f"tab13/{VIDEO}-dense-eval", 76.9, {"count": 19_404}, r=0, **K400)
    assert collect.main(["--write"], here) == 0
    assert shown(here)[-1] == (
        "videomamba_video_tiny-dense-eval 76.90 of 19404<br>videomamba_video_tiny-r0-eval 76.90 of 19404<br>"
        "videomamba_video_tiny-r88-eval 75.40 of 19404 (3 unreadable)"
    )


@pytest.mark.parametrize("recipe", [*TABLES, *VIDEO_TABLES], ids=title)
def test_every_run_of_a_recipe_is_accepted_in_its_row(recipe, tmp_path):
    if recipe in TABLES:
        configs = [config for config, _ in plan(recipe)]
        configs += [config for config, _ in plan(recipe, "RELEASED")] if has_quirks(recipe) else []
    else:
        _, commands = launch(recipe, tmp_path, DRY_RUN="1")
        configs = [parse_video(task_arguments(command))[0] for command in commands]
    rows = [row["patterns"] for row in collect.CELL.finditer((ROOT / "exp_sh" / "README.md").read_text())]
    for config in configs:
        table, name = recipe.parent.name, config.folder.name
        settings = json.loads(json.dumps(config.to_dict()))
        assert collect.why_not(table, name, {"count": 50_000}, settings) is None, config.folder
        assert sum(collect.belongs(f"{table}/{name}", patterns) for patterns in rows) == 1


def test_a_reader_who_leaves_is_no_traceback_and_the_files_are_written(here, finish):
    finish(f"tab2/{TINY}-r5")
    read, write = os.pipe()
    os.close(read)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import collect; from pathlib import Path; "
    code += "sys.exit(collect.main(['--write'], Path(sys.argv[2])))"
    process = subprocess.run(
        [PYTHON, "-c", code, str(ROOT / "exp_sh"), str(here)],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (1, "")
    assert shown(here)[0] == "vim_tiny-r5 75.31"


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


HOSTILE = {
    "deep": '{"a":' * 10**5,
    "beyond a float": '{"top1": 75.0, "epochs": 1e999, "count": 50000, "unreadable": 0}',
    "a list": "[1]",
    "null": "null",
    "not a number": '{"top1": NaN, "count": 50000, "unreadable": 0}',
    "text for a number": '{"top1": "75 <b>", "count": 50000, "unreadable": 0}',
    "beyond 100": '{"top1": 1000, "count": 50000, "unreadable": 0}',
    "a script": '{"top1": 75.0, "count": 50000, "unreadable": "<!-- /ours --><script>"}',
    "a truth": '{"top1": true, "count": 50000, "unreadable": 0}',
    "a list of epochs": '{"top1": 75.0, "count": 50000, "unreadable": 0, "epochs": [1]}',
    "an average that is none": '{"top1": 75.0, "count": 50000, "unreadable": 0, "ema": 3}',
    "many digits": '{"top1": 75.0, "count": 50000, "unreadable": 1' + "0" * 5000 + "}",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_one_bad_result_does_not_stop_the_others_nor_reach_the_readme(here, finish, capsys, content):
    bad = finish(f"tab2/{TINY}-r11")
    (bad / "result.json").write_text(content)
    finish(f"tab2/{TINY}-r5", 75.314, {"epochs": 30})
    assert collect.main(["--write"], here) == 0
    assert f"skipped {bad}: not a whole run folder" in capsys.readouterr().out
    assert shown(here)[0] == "vim_tiny-r5 75.31" and "script" not in (here / "README.md").read_text()


@pytest.mark.parametrize("name", ["config", "env"])
@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"command": 3}', '{"a":' * 10**5])
def test_other_files_of_a_run_are_as_harmless(here, finish, capsys, name, content):
    bad = finish(f"tab2/{TINY}-r11")
    (bad / f"{name}.json").write_text(content)
    assert collect.main(["--write"], here) == 0
    assert f"skipped {bad}: not a whole run folder" in capsys.readouterr().out


def test_a_pipe_among_the_runs_does_not_hang(here, finish, capsys):
    bad = finish(f"tab2/{TINY}-r11")
    (bad / "result.json").unlink()
    os.mkfifo(bad / "result.json")
    assert collect.main([], here) == 0
    assert "no regular file" in capsys.readouterr().out


def test_names_are_text_in_the_readme():
    record = {"top1": 60.0, "count": 50_000, "unreadable": 0}
    text = collect.render("<!-- ours: tab5/* --><!-- /ours -->", {"tab5/a<b>|*\x1b<!-- /ours -->": record})
    assert text == (r"<!-- ours: tab5/* -->a&lt;b&gt;\|\*\\x1b&lt;!-- /ours --&gt; 60.00<!-- /ours -->")


@pytest.mark.parametrize("content", ["[1]", '{"tab2/x": 3}', '{"tab2/x": {"top1": "<b>"}}', "{"])
def test_records_that_are_none_are_one_error(here, finish, capsys, content):
    finish(f"tab2/{TINY}-r5", 75.314, {"epochs": 30})
    (here / "results.json").write_text(content)
    assert collect.main(["--write"], here) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert (here / "README.md").read_text() == README
