"""The suite of number formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import formats
from rmeeto.errors import UserError

CPU = torch.device("cpu")


def test_each_format_is_evaluated_on_the_digits_and_timed(monkeypatch):
    monkeypatch.setattr(formats, "has_bf16", lambda: False)
    monkeypatch.setattr(formats, "R", (0,))
    accuracy, *times = formats.units(CPU, 5, Path("nowhere"), quick=True)
    rows = list(accuracy.rows())
    ways = [row["way"] for row in rows]
    assert ways == [
        "fp32",
        "fp32 by columns",
        "fp32 by oneDNN",
        "fp32 by samples",
        "fp32 by samples and oneDNN",
        "int8",
    ]
    assert rows[0]["answers_as_fp32"] == 100 and rows[0]["images"] == 360
    assert rows[0]["top1"] == rows[1]["top1"] == rows[2]["top1"] == pytest.approx(98.33, abs=0.01)
    assert rows[3]["top1"] > 95 and rows[3]["answers_as_fp32"] > 95
    assert [unit.name for unit in times] == ["r = 0, batch 1", "r = 0, batch 8"]
    rows = list(times[0].rows())
    assert [row["way"] for row in rows] == ways and rows[0]["over_fp32"] == 1


def test_data_that_are_not_there_are_one_error(tmp_path):
    fashion = next(unit for unit in formats.units(CPU, 5, tmp_path) if unit.name == "FASHION")
    with pytest.raises(UserError, match="FashionMNIST"):
        list(fashion.rows())
