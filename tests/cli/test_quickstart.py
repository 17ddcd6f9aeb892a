"""A quick start's folder: only its own is moved, and whatever cannot be one is a line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rmeeto.cli.quickstart import make_folder, run_quickstart


def start(*argv: str) -> tuple[int, list[Path]]:
    """The exit code of a quick start that makes its folder and nothing else, and the folder it was given."""
    folders = []

    def work(folder: Path, seed: int, weights: str) -> None:
        folders.append(folder)
        make_folder(folder, seed)

    return run_quickstart(argv, "", "runs/quickstart", Path("weights"), work), folders


def test_every_older_folder_is_kept(tmp_path):
    for number in range(3):
        make_folder(tmp_path / "run", number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-1", "run-2"]
    seeds = [json.loads((tmp_path / name / "summary.json").read_text())["seed"] for name in ("run-1", "run-2", "run")]
    assert seeds == [0, 1, 2]


def test_the_folder_of_an_earlier_version_is_an_older_one(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "summary.json").write_text('{"dense": 98.3, "throughput": {}}')
    make_folder(folder, 0)
    assert json.loads((tmp_path / "run-1" / "summary.json").read_text())["dense"] == 98.3


def test_an_empty_folder_is_taken(tmp_path):
    make_folder(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


SUMMARIES = ["", "[1]", "null", '{"top1": 3}', "[" * 100_000, '"throughput"']


@pytest.mark.parametrize("summary", [None, *SUMMARIES], ids=lambda text: str(text)[:12])
def test_a_folder_of_something_else_stays(summary, tmp_path, capsys):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years")
    if summary is not None:
        (thesis / "summary.json").write_text(summary)
    before = sorted(path.name for path in thesis.iterdir())
    assert start("--output_dir", str(thesis))[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --output_dir {thesis} is no quick start's") and "give another" in line
    assert sorted(path.name for path in thesis.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


@pytest.mark.parametrize(
    "name",
    [".", "", "..", "/sys", "/sys/x", "/", "file", "file/x", "dangling", "pipe", "x" * 300, "a/" * 3000],
)
def test_what_cannot_be_the_folder_is_a_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("dangling").symlink_to("nowhere")
    os.mkfifo("pipe")
    assert start("--output_dir", name)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --output_dir ") and "give a" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "pipe"]


def test_a_relative_folder_lies_where_the_user_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert start("--output_dir", "mine") == (0, [tmp_path / "mine"])
    assert start("--output_dir", "a/../mine/")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine-1"]


def test_a_wrong_seed_moves_nothing(tmp_path, capsys):
    make_folder(tmp_path / "run", 0)
    assert start("--output_dir", str(tmp_path / "run"), "--seed", "-1")[0] == 2
    assert "seed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_is_a_line(tmp_path, capsys):
    def work(*_: object) -> None:
        raise OSError(28, "No space left on device", "sum\x1bmary.json")

    assert run_quickstart([], "", str(tmp_path / "run"), Path(), work) == 2
    assert capsys.readouterr().err == (
        "error: sum\\x1bmary.json cannot be used: No space left on device; make room on the disk.\n"
    )
