"""The notebooks of the image task run from top to bottom."""

from __future__ import annotations

import pytest

from tests.notebooks import ROOT, check_in_a_kernel, check_stored_run, execute

NOTEBOOKS = sorted((ROOT / "image_task" / "example").glob("*.ipynb"))
# In place of what the cell tagged "parameters" says.
TINY = {
    "speed": {"MODEL": "vim_nano_patch2_16", "SIZE": 16, "R": [0, 12], "BATCH": 1, "RUNS": 5},
    "visualize": {"R": [0, 12]},
}


def test_every_notebook_is_tested():
    assert [path.stem for path in NOTEBOOKS] == list(TINY)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_speed_sets_seconds_beside_multiply_accumulates(capsys):
    names = execute(NOTEBOOKS[0], TINY["speed"])
    assert names["theory"][0] == names["practice"][0] == 1 < names["theory"][1]
    assert names["practice"][1] > 0
    assert "r = 12: 65 tokens in the first block, 41 in the last" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_visualize_follows_the_merged_tokens(capsys):
    names = execute(NOTEBOOKS[1], TINY["visualize"])
    dense, merged = names["rows"]
    assert dense[0] > merged[0] > 50 and dense[1:] == (1, 1) and min(merged[1:]) > 1
    assert "source: (10, 41, 65)" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_outputs_are_of_one_clean_run(path):
    check_stored_run(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_kernel_runs_the_notebook(path, tmp_path, monkeypatch):
    check_in_a_kernel(path, tmp_path, monkeypatch)
