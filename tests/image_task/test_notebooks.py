"""The notebooks of the image task run from top to bottom."""

from __future__ import annotations

import json

import pytest

from image_task.quickstart import WEIGHTS
from tests.notebooks import ROOT, check_in_a_kernel, check_stored_run, execute

FOLDER = ROOT / "image_task" / "example"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# In place of what the cell tagged "parameters" says.
TINY = {
    "merge_in_ten_minutes": {"MODEL": "vim_tiny_patch16_224", "MERGES": 3},
    "own_data": {"EPOCHS": 1, "RETRAIN": 1},
    "test_speed": {"MODEL": "vim_nano_patch2_16", "SIZE": 16, "R": [0, 12], "BATCH": 1, "RUNS": 5},
    "visualization": {"R": "11"},
}
pytestmark = pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")


def run(name: str, **more: object) -> dict:
    return execute(FOLDER / f"{name}.ipynb", TINY[name] | more)


def test_every_notebook_is_tested():
    assert [path.stem for path in NOTEBOOKS] == list(TINY)


def test_speed_sets_seconds_beside_multiply_accumulates(capsys):
    names = run("test_speed")
    assert names["theory"][0] == names["practice"][0] == 1 < names["theory"][1]
    assert names["practice"][1] > 0
    assert "r = 12: 65 tokens in the first block, 41 in the last" in capsys.readouterr().out


def test_ten_minutes_merge_a_photograph_without_loss(capsys):
    names = run("merge_in_ten_minutes")
    assert names["x"].shape[1] == 576 - 3 * 22 and int(names["size"].sum()) == 576
    said = capsys.readouterr().out
    assert "nothing is lost" in said and "block 20: 87 tokens, class token at 39" in said


def test_own_data_goes_all_the_way(capsys):
    names = run("own_data")
    assert names["names"] == ["flower", "sky", "temple"] and names["model"].num_tokens[-1] == 41
    assert names["sheet"].width > 600
    assert "65 tokens in the first block, 41 in the last" in capsys.readouterr().out


def test_visualization_draws_a_photograph_and_the_digits(capsys):
    names = run("visualization")
    assert names["sheet"].width > 1000
    assert "source: (6, 41, 65)" in capsys.readouterr().out


def test_visualization_takes_a_file_of_weights(capsys):
    file = run("visualization", WEIGHTS=str(WEIGHTS), MODEL="vim_nano_patch2_16", R="12")
    assert file["flags"][-2:] == ["--model", "vim_nano_patch2_16"] and file["sheet"].width > 1000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_outputs_are_of_one_clean_run(path):
    check_stored_run(path)


def test_the_text_of_a_figure_is_no_stored_picture(tmp_path):
    notebook = json.loads((FOLDER / "visualization.ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    *_, figure = [output for output in outputs if "image/png" in output.get("data", {})]
    del figure["data"]["image/png"]
    path = tmp_path / "one.ipynb"
    path.write_text(json.dumps(notebook, indent=1))
    with pytest.raises(AssertionError, match="<Figure size"):
        check_stored_run(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_kernel_runs_the_notebook(path, tmp_path, monkeypatch):
    check_in_a_kernel(path, tmp_path, monkeypatch)
