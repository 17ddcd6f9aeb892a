"""What is made before a GPU is rented: compiled kernels in an archive, the profiler's table, the recipes' rows."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections import defaultdict

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
    (unit,) = fashion.units()
    assert unit.name == "seeds 0, 1, 2"
    assert ["let DATA name its folder" in row["skipped"] for row in unit.rows()] == [True]


def test_runs_of_the_evidence_are_rows_as_they_end_and_a_seed_that_fails_ends_no_other(tmp_path, monkeypatch):
    (tmp_path / "data" / fashion.RAW).mkdir(parents=True)
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "all.sh").write_text(
        'for name in dense r11; do run=$RUNS/fashion/vim-$name-seed$SEED; mkdir -p "$run"\n'
        'echo "{\\"top1\\": 9$JOBS}" > "$run/new"; mv "$run/new" "$run/result.json"; done; exit "$SEED"\n'
    )
    monkeypatch.setattr(fashion, "RECIPES", recipes)
    monkeypatch.setattr(fashion.sys, "executable", PYTHON)
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    rows = fashion.rows((0, 1))
    found = []
    with pytest.raises(AssertionError, match="exit codes {1: 1}"):
        found.extend(rows)  # those before it
    runs = {(row["run"], row.get("top1")) for row in found if row["run"] != "all"}
    assert runs == {(f"vim-{name}-seed{seed}", 95) for name in ("dense", "r11") for seed in (0, 1)}
    assert {row["seed"]: row["runs"] for row in found if row["run"] == "all"} == {0: 2, 1: 2}


def test_the_fashion_part_takes_as_long_as_three_seeds_are_thought_to_take():
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
        given = [int(after) for word, after in zip(words, words[1:]) if word == flag]  # a later one counts
        return given[-1] if given else otherwise

    trainings = [words for words in runs.values() if "--eval" not in words]
    steps, eager, longest = [], 0, defaultdict(list)
    for words in trainings:
        epochs, held_out = value(words, "--epochs", 3), value(words, "--holdout", 0)
        batches = value(words, "--max_train_batches", 0) or (60_000 - held_out) // 64
        steps.append(epochs * batches)
        longest[held_out, value(words, "--max_train_batches", 0)].append(epochs * batches)
        eager += epochs * batches * ("--elastic_r" in words)
    assert (len(runs), sum(steps), eager) == (fashion.NUM_RUNS, fashion.NUM_STEPS, fashion.NUM_EAGER)
    made = sum(sum(sorted(of_data)[-fashion.PROCESSES :]) for of_data in longest.values())
    assert 64 * made == fashion.NUM_MADE, "each process has one of the longest trainings on the same batches"
