"""`python -m benchmarks windows`: what it writes, and that agreement means agreement."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("av")

from benchmarks import cli  # noqa: E402
from benchmarks import windows as window  # noqa: E402
from rmeeto.nn import block  # noqa: E402


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(window, "MODEL", "videomamba_video_nano_patch4_32")
    monkeypatch.setattr(window, "FRAMES", (1,))
    monkeypatch.setattr(window, "WINDOWS", ((1, 3, 3), (1, 8, 8), (8, 8, 8)))
    monkeypatch.setattr(window, "DIGITS_R", ())


def test_a_run_writes_costs_times_and_agreement(tmp_path, capsys):
    before = block.plan_merge
    assert cli.main(["windows", "--runs", "5", "--out", str(tmp_path)]) == 0
    assert block.plan_merge is before
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert path.name.startswith("window-fp32-cpu-pt") and path.name in capsys.readouterr().out
    dense = next(row for row in result["cost"] if row["model"] == "tiny" and row["r"] == 0)
    assert (dense["paper"], dense["full"], dense["matching"]) == (11.539, 14.518, 0)
    (row,) = result["time"]
    assert row["tokens"] == 197 and row["window (1, 3, 3)"] > 0
    near, frame, whole = (r for r in result["agreement"] if r["r"] == 40)
    assert whole["same_pairs"] == whole["same_sources"] == 1, "a window as large as the grid"
    assert near["same_pairs"] < frame["same_pairs"] < 1
    assert near["similarity_local"] < frame["similarity_local"] < whole["similarity_local"]
    assert whole["similarity_local"] == whole["similarity_exact"]
    assert result["digits"][0]["top1"] > 95

    assert cli.main(["windows", "--out", str(tmp_path)]) == 2
    assert "exists; give --force" in capsys.readouterr().err
