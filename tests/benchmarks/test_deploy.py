"""The suites of exported models and of long inputs."""

from __future__ import annotations

import pytest
import torch

from benchmarks import deploy, long
from benchmarks.parity import Refused

CPU = torch.device("cpu")


def test_an_export_is_timed_beside_the_model_and_only_if_it_gives_the_same(monkeypatch):
    monkeypatch.setitem(deploy.WAYS, "same", lambda model, folder: model)
    rows = list(deploy.rows("vim_nano_patch2_16", 4, "same", CPU, 5))
    assert [row["batch"] for row in rows] == [1, 8] and all(row["deviation"] == 0 for row in rows)
    assert all(row["slower"] == pytest.approx(1, rel=0.9) and row["export_s"] < 5 for row in rows)
    for scale in (1.01, float("nan")):
        monkeypatch.setitem(deploy.WAYS, "off", lambda model, folder, s=scale: lambda x: s * model(x))
        with pytest.raises(Refused, match="off of vim_nano_patch2_16: off by"):
            next(deploy.rows("vim_nano_patch2_16", 0, "off", CPU, 5))


def test_long_inputs_are_measured_by_every_rule():
    (unit,) = long.units(CPU, 5, quick=True)
    rows = list(unit.rows())
    assert [row["way"] for row in rows] == ["dense", "exact", "window (1, 3, 3)", "adjacent"]
    assert rows[0]["tokens"] == "257 to 257" and len({row["tokens"] for row in rows[1:]}) == 1
    assert rows[0]["speed_up"] == 1 and all(row["ms"] > 0 for row in rows)
