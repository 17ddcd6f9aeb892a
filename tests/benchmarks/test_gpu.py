"""The GPU benchmark, dry: every part runs, writes its file, and is not run twice; the floors are those we published."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import floors
from benchmarks.gpu.run import DRY, PARTS, main

ROOT = Path(__file__).resolve().parents[2]


def call(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu.sh"), str(out), *arguments],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )


def test_a_dry_run_writes_every_part_and_resumes(tmp_path, capsys):
    first = call(tmp_path, "--dry-run", "--budget", "400")
    assert first.returncode == 0, first.stdout + first.stderr
    reports = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert set(reports) == set(DRY)
    for report in reports.values():
        assert report["error"] is None
        assert report["environment"]["dry_run"] and report["environment"]["torch"]
    assert all(check["holds"] for check in reports["checks"]["result"].values())
    ratios = reports["forward_vim_nano"]["result"]["ratios"]
    assert "batch 2, eager, r=11: upstream / ours" in ratios
    assert "upstream / ours" in reports["training"]["result"]["vim_nano"]
    assert {"scan", "scan, upstream", "merge"} <= set(reports["operators"]["result"]["vim_nano, batch 2"])
    assert "nothing here is a measurement" in first.stdout

    (tmp_path / "operators.json").unlink()
    capsys.readouterr()
    assert main([str(tmp_path), "--dry-run"]) == 0
    ran = [line for line in capsys.readouterr().out.splitlines() if line.endswith("...")]
    assert ran == ["operators ..."]


def test_parts_are_left_for_another_call_when_the_time_is_up(tmp_path):
    assert main([str(tmp_path), "--dry-run", "--budget", "0"]) == 3
    assert not list(tmp_path.glob("*.json"))


def test_a_wrong_call_says_what_there_is(tmp_path, capsys):
    assert (
        "bash benchmarks/gpu.sh OUT"
        in subprocess.run(["bash", str(ROOT / "benchmarks/gpu.sh")], capture_output=True, text=True).stderr
    )
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path), "--dry-run", "speed"])
    assert error.value.code == 2
    assert "speed: no such part; there are environment, checks" in capsys.readouterr().err


def test_the_parts_of_a_real_run_exist():
    for target, seconds in PARTS.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function))
        assert seconds < 540


@pytest.mark.parametrize(
    ("embed", "r", "fused", "upstream"),
    [
        (192, 0, 3.44, 5.56),
        (384, 0, 7.4, 11.6),
        (768, 0, 17.4, 25.8),
        (192, 11, 2.39, 3.86),
        (384, 11, 5.1, 8.0),
    ],
)
def test_floors_at_batch_128_on_one_h200(embed, r, fused, upstream):
    """Milliseconds of a Vim's 24 blocks, as estimated by hand when the layouts were chosen."""
    counts = [197 - r * (i // 2) for i in range(24)]
    for layout, expected in (("fused", fused), ("upstream", upstream)):
        seconds = floors.forward(128, counts, embed, floors.H200, layout)
        assert seconds * 1e3 == pytest.approx(expected, rel=0.08)
