"""The notebooks of the video task run from top to bottom, and show what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import mkdtemp

import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from tests.notebooks import ROOT, check_in_a_kernel, check_stored_run, code_cells, display_somewhere, execute

pytest.importorskip("av")

from video_task.visualize import write_mp4

NOTEBOOKS = sorted((ROOT / "video_task" / "example").glob("*.ipynb"))
# In place of what the cell tagged "parameters" says.
TINY = {
    "test_speed": {"MODEL": "videomamba_video_nano_patch4_32", "FRAMES": 4, "SIZE": 32, "R": [40], "RUNS": 5},
    "visualization": {"CLIPS": 2},
}


def printed(path: Path) -> str:
    """All text of the stored outputs."""
    return "".join(line for cell in code_cells(path) for out in cell["outputs"] for line in out.get("text", ()))


def test_every_notebook_is_tested():
    assert [path.stem for path in NOTEBOOKS] == list(TINY)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_speed_sets_seconds_beside_multiply_accumulates(capsys):
    names = execute(NOTEBOOKS[0], TINY["test_speed"])
    assert list(names["models"]) == ["dense", "r = 40, exact", "r = 40, window"]
    for dense, exact, window in names["theory"].values():
        assert dense == 1 and exact < window
    assert names["practice"][0] == 1 and min(names["practice"]) > 0 and names["bars"].min() >= 0
    assert "r = 40, window  257 tokens in the first block, 177 in the last" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_visualize_follows_the_merged_tokens_over_the_frames_of_real_files(capsys):
    names = execute(NOTEBOOKS[1], TINY["visualization"])
    assert {file.suffix for file in names["files"]} == {".mp4"} and len(names["files"]) == len(names["labels"])
    assert names["places"].shape == (24, 43, 4, 6, 6)
    assert (names["places"].sum(1) == 1).all()  # every patch is in one group
    assert 0.4 < names["across"] < 1
    right = {name: int((p.argmax(1) == names["labels"]).sum()) for name, p in names["probabilities"].items()}
    assert min(right["dense"], right["merged, re-trained"]) > right["merged"] > 12
    assert "24 files, the first of 16 frames" in capsys.readouterr().out
    assert names["sheet"].width > 8 * 192


def test_visualize_takes_a_clip_and_a_file_of_weights(tmp_path):
    name = "videomamba_video_nano_patch4_32"
    clip, weights = tmp_path / "mine.mp4", tmp_path / "mine.safetensors"
    write_mp4(clip, [Image.new("RGB", (40, 40), (10 * i, 90, 0)) for i in range(16)])
    save_file(timm.create_model(name, num_classes=3).state_dict(), weights)
    names = {
        "MODEL": name,
        "WEIGHTS": weights,
        "CLIP": clip,
        "R": 60,
        "DEVICE": "cpu",
        "Path": Path,
        "mkdtemp": mkdtemp,
    }
    with display_somewhere():
        exec("".join(code_cells(NOTEBOOKS[1])[-1]["source"]), names)
    assert names["flags"][:4] == ["--model", name, "--model_pth", str(weights)]
    assert names["sheet"].width > 8 * 192


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_outputs_are_of_one_clean_run(path):
    check_stored_run(path)


def test_the_stored_counts_are_those_of_the_recorded_result():
    (file,) = (ROOT / "benchmarks" / "results").glob("window-fp32-cpu-*.json")
    recorded = {
        (row["r"], tuple(row["window"] or ())): [row["paper"], row["matching"], row["full"], row["matching"]]
        for row in json.loads(file.read_text())["cost"]
        if row["model"] == "tiny"
    }
    stored = re.findall(r"^(dense|r = (\d+), (exact|window)) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$",
                        printed(NOTEBOOKS[0]), re.MULTILINE)  # fmt: skip
    assert len(stored) == 5
    for _, r, kind, *counts in stored:
        expected = recorded[int(r or 0), (2, 3, 3) if kind == "window" else ()]
        assert [float(count) for count in counts] == pytest.approx(expected, abs=0.001)


def test_the_stored_seconds_say_what_was_measured_where():
    (line,) = re.findall(r"^.*batch 1, 8 frames of 224 px.*$", printed(NOTEBOOKS[0]), re.MULTILINE)
    assert re.search(r"videomamba_video_tiny_patch16_224, .* fp32, torch [\d.]+.*, .+, \d+ thread\(s\)", line)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_kernel_runs_the_notebook(path, tmp_path, monkeypatch):
    check_in_a_kernel(path, tmp_path, monkeypatch)
