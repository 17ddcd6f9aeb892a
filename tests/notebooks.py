"""What the notebooks' tests share: running their cells, and what every stored run has to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[1]


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def execute(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Run the cells in this process, with these in place of what the cell tagged "parameters" says.

    Returns:
        What they define.
    """
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for cell in code_cells(path):
        lines = [line for line in cell["source"] if not line.startswith("%")]
        exec(compile("".join(lines), path.name, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert settings.keys() <= names.keys()
            names |= settings
    return names


def check_stored_run(path: Path) -> None:
    """From the first cell to the last, without errors or warnings, with a picture."""
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = {output["output_type"] for output in outputs}
    assert {"stream"} < kinds <= {"stream", "display_data", "execute_result"}
    assert len(json.loads(path.read_text())["cells"]) <= 12
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 200_000


def check_in_a_kernel(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user runs it."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute()
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))
