"""What is made before a GPU is rented: compiled kernels in an archive, the profiler's table, the recipes' rows."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile

import pytest
import torch

from benchmarks import ahead, fashion, ncu, plan
from tests.warm import PYTHON


def test_kernels_are_packed_for_a_gpu_that_is_not_there(tmp_path, capsys, monkeypatch):
    """Of a setting whose compiling is stood in for."""

    def compiled(options, cache):
        (cache / "key").mkdir(parents=True)
        (cache / "key" / "kernel.cubin").write_bytes(b"code")
        return []

    monkeypatch.setattr(ahead, "compile_kernels", compiled)
    assert ahead.main(["pack", str(tmp_path / "a.tar.gz")]) == 0
    with tarfile.open(tmp_path / "a.tar.gz") as packed:
        assert packed.getnames() == ["triton/key/kernel.cubin"]
    monkeypatch.setattr(ahead, "LARGEST", 10)
    assert ahead.main(["pack", str(tmp_path / "a.tar.gz")]) == 1
    assert "give fewer --settings" in capsys.readouterr().err


def test_a_setting_that_does_not_compile_is_named_and_the_others_are_made(tmp_path, capsys, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(sys, "executable", PYTHON)
    flags = ["pack", str(tmp_path / "a.tar.gz"), "--settings", "none", "--jobs", "1"]
    assert ahead.main(flags) == 1
    assert "none: KeyError: 'none'" in capsys.readouterr().err


def test_without_a_gpu_the_profiler_is_a_row_that_says_so():
    assert [row for unit in ncu.units(torch.device("cpu")) for row in unit.rows()] == [{"skipped": "there is no GPU"}]


def test_the_profilers_table_is_read():
    text = (
        '==PROF== Connected\n"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","scan_fwd_kernel","gpu__time_duration.sum","ns","240,512"\n'
    )
    assert list(ncu.parsed(text)) == [{"launch": "0: scan_fwd_kernel", "what": "ns", "value": 240512.0}]


def test_without_the_images_the_evidence_is_a_row_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(tmp_path))
    units = list(fashion.units())
    assert [unit.name for unit in units] == ["seed 0", "seed 1", "seed 2"]
    assert ["let DATA name its folder" in row["skipped"] for row in units[0].rows()] == [True]


def test_runs_of_the_evidence_are_rows_as_they_end(tmp_path, monkeypatch):
    (tmp_path / "data" / fashion.RAW).mkdir(parents=True)
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "all.sh").write_text(
        'for name in dense r11; do run=$RUNS/fashion/vim-$name-seed$SEED; mkdir -p "$run"\n'
        'echo \'{"top1": 90}\' > "$run/result.json"; done\n'
    )
    monkeypatch.setattr(fashion, "RECIPES", recipes)
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    *rows, last = fashion.rows(1)
    assert [(row["run"], row["top1"]) for row in rows] == [("vim-dense-seed1", 90), ("vim-r11-seed1", 90)]
    assert last["runs"] == 2


def test_the_fashion_part_takes_as_long_as_a_seed_is_thought_to_take():
    assert plan.PARTS["fashion"].expected == round(fashion.expected())


@pytest.mark.slow
def test_a_seed_of_the_evidence_has_the_runs_and_steps_that_its_time_is_thought_from(tmp_path):
    """The recipes with an interpreter that writes down what it is to run."""
    python, said = tmp_path / "python", tmp_path / "said"
    python.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "RUNS": str(tmp_path), "DATA": str(tmp_path)}
    subprocess.run(["bash", fashion.RECIPES / "all.sh"], env=environment, check=True, stdout=subprocess.DEVNULL)
    runs = {
        words[words.index("--name") + 1]: words
        for words in map(str.split, said.read_text().splitlines())
        if "--name" in words
    }

    def value(words: list[str], flag: str, otherwise: int) -> int:
        return int(words[words.index(flag) + 1]) if flag in words else otherwise

    trainings = [words for words in runs.values() if "--eval" not in words]
    steps = [
        value(words, "--epochs", 3)
        * (value(words, "--max_train_batches", 0) or (60_000 - value(words, "--holdout", 0)) // 64)
        for words in trainings
    ]
    assert (len(runs), sum(steps)) == (fashion.NUM_RUNS, fashion.NUM_STEPS)
