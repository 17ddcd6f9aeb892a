"""What the notebooks' tests share: running their cells, and what every stored run has to be.

`python -m tests.notebooks` runs every notebook in a kernel and stores its outputs; with paths, those alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[1]


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@contextlib.contextmanager
def display_somewhere() -> Iterator[None]:
    """Where there is no IPython, its `display` shows nothing, so that the cells run all the same."""
    if importlib.util.find_spec("IPython") is not None:
        yield
        return
    stand_in, package = ModuleType("IPython.display"), ModuleType("IPython")
    stand_in.display = lambda *shown: None
    package.version_info, package.get_ipython = (9, 0), lambda: None  # which matplotlib asks for
    sys.modules |= {"IPython": package, "IPython.display": stand_in}
    try:
        yield
    finally:  # and nothing else that the cells have imported
        del sys.modules["IPython"], sys.modules["IPython.display"]


def execute(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Run the cells in this process, with these in place of what the cell tagged "parameters" says.

    Returns:
        What they define.
    """
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for cell in code_cells(path):
        lines = [line for line in cell["source"] if not line.startswith("%")]
        with display_somewhere():
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
    check_no_text_for_a_picture(outputs)
    assert path.stat().st_size < 200_000


def check_no_text_for_a_picture(outputs: Sequence[dict[str, Any]]) -> None:
    """No output says "<Figure size 900x320 with 12 Axes>" in place of the picture that it should be."""
    for data in (output.get("data", {}) for output in outputs):
        said = "".join(data.get("text/plain", ""))
        assert "image/png" in data or not said.startswith("<"), f"{said} has no picture"


def check_in_a_kernel(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user runs it."""
    pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    outputs = [output for cell in _run_in_a_kernel(path, folder).cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    check_no_text_for_a_picture(outputs)


def _run_in_a_kernel(path: Path, folder: Path) -> Any:
    """The notebook with the outputs of a run in this folder."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, record_timing=False, resources=resources).execute()
    return notebook


def store(path: Path) -> None:
    """Run a notebook and keep the outputs; its metadata stays, so that a kernel's version changes no file."""
    import nbformat

    metadata = deepcopy(nbformat.read(path, as_version=4).metadata)
    with TemporaryDirectory() as folder:
        notebook = _run_in_a_kernel(path, Path(folder))
    notebook.metadata = metadata
    nbformat.write(notebook, path)


def main(names: Sequence[str]) -> None:
    """Store the runs of these notebooks, or of all."""
    os.environ["PYTHONPATH"] = str(ROOT)
    for path in map(Path, names or sorted(ROOT.glob("*_task/example/*.ipynb"))):
        store(path)
        check_stored_run(path)
        print(path, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
