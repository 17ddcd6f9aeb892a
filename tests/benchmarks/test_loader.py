"""Feeding is measured way by way, beside the decoder alone, and in a training that waits."""

import os

import torch

from benchmarks import loader, report


def test_rows_of_the_loader():
    found = {unit.name: list(unit.rows()) for unit in loader.units(torch.device("cpu"), quick=True)}
    small, large, cores, training = found.values()
    for rows in (small, large):
        assert rows[0]["way"] == loader.FLOOR and rows[0]["share_of_floor"] == 1.0
        assert {row["way"] for row in rows} >= {"training", "training, draft off", "training, shards"}
    assert all(row["images_per_s"] >= row["images_per_s_core"] > 0 for row in (*small, *large, *cores))
    assert {row["workers"] for row in cores} == {os.cpu_count()}
    assert [row["workers"] for row in training] == sorted({0, os.cpu_count()})
    assert all(0 < row["waits"] < 1 for row in training)
    assert "waits" in report.cells(training[0])
