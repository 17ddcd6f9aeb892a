"""The notebooks of the image task run from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "image_task" / "example").glob("*.ipynb"))
# In place of what the cell tagged "parameters" says.
TINY = {
    "speed": {"MODEL": "vim_nano_patch2_16", "SIZE": 16, "R": [0, 12], "BATCH": 1, "RUNS": 5},
    "visualize": {"R": [0, 12]},
}


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def execute(path: Path) -> dict[str, Any]:
    """Run the cells in this process with tiny settings; what they define."""
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for cell in code_cells(path):
        lines = [line for line in cell["source"] if not line.startswith("%")]
        exec(compile("".join(lines), path.name, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            replaced = TINY[path.stem]
            assert replaced.keys() <= names.keys()
            names |= replaced
    return names


def test_every_notebook_is_tested():
    assert [path.stem for path in NOTEBOOKS] == list(TINY)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_speed_sets_seconds_beside_multiply_accumulates(capsys):
    names = execute(NOTEBOOKS[0])
    assert names["theory"][0] == names["practice"][0] == 1 < names["theory"][1]
    assert names["practice"][1] > 0
    assert "r = 12: 65 tokens in the first block, 41 in the last" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_visualize_follows_the_merged_tokens(capsys):
    names = execute(NOTEBOOKS[1])
    dense, merged = names["rows"]
    assert dense[0] > merged[0] > 50 and dense[1:] == (1, 1) and min(merged[1:]) > 1
    assert "source: (10, 41, 65)" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stored_outputs_are_of_one_clean_run(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"} | (
        {"execute_result"} if path.stem == "visualize" else set()
    )
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_kernel_runs_the_notebook(path, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert any(
        "image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())
    )
