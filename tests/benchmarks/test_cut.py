"""A run on a rented GPU is cut at any second: every row that was shown is in the one archive."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest

from benchmarks import packing, plan, report, results
from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[2]


def call(out: Path, *arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", str(ROOT / "benchmarks/gpu.sh"), str(out), "--work", str(out.parent / "work"), *arguments],
        env=os.environ | {"PYTHON": PYTHON},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def archived(out: Path) -> dict[str, dict]:
    """The results in an archive by their suite; rows of a unit that was cut count as those of its table."""
    found = {}
    with tarfile.open(out / plan.ARCHIVE) as packed:
        for name in packed.getnames():
            if "-" in name and name.endswith(".json"):
                result = json.loads(packed.extractfile(name).read())
                cut = result.get("open")
                if cut is not None:
                    result.setdefault(cut["table"], []).extend(cut["rows"])
                found[name.partition("-")[0]] = result
    return found


def shown(text: str) -> list[str]:
    """The rows that the suites printed."""
    return [line for line in text.splitlines() if line.startswith("  ") and not line.startswith("   ")]


def lines_of(found: dict[str, dict]) -> list[str]:
    tables = ((table, rows) for result in found.values() for table, rows in result.items() if report.are_rows(rows))
    return [f"  {report.line(row, table)}" for table, rows in tables for row in rows]


@pytest.mark.slow
def test_a_cut_at_any_second_loses_no_row_that_was_shown(tmp_path):
    """The whole plan on the CPU's stand-ins, killed with all that it started."""
    seconds = random.uniform(5, 60)
    process = call(tmp_path / "out", "--dry-run", "--budget", "600")
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        text, _ = process.communicate()
    if shown(text):
        assert set(shown(text)) <= set(lines_of(archived(tmp_path / "out"))), f"cut after {seconds:.1f} s"


def kill_tree(pid: int) -> None:
    """A process and all that descend from it, as a machine that is taken away."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        kill_tree(int(child))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


SUITE = """
import sys, time
from pathlib import Path
import torch
from benchmarks import cli, results
from benchmarks.results import Unit

folder, archive = Path(sys.argv[1]), Path(sys.argv[2])
result = results.begin(folder / "models-fp32-cpu-pt1.json", "models", "fp32", torch.device("cpu"))
rows = lambda unit: ({"unit": unit, "row": row} for row in range(3) if not time.sleep(0.01))
units = [Unit(str(i), lambda i=i: rows(i)) for i in range(1000)]
cli.measure(folder / "models-fp32-cpu-pt1.json", result, units, archive=archive)
"""


def test_every_row_that_was_shown_is_in_the_archive_when_a_suite_is_killed(tmp_path):
    command = [PYTHON, "-c", SUITE, str(tmp_path), str(tmp_path / plan.ARCHIVE)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        text = first + process.stdout.read()
    assert shown(text) and set(shown(text)) <= set(lines_of(archived(tmp_path)))


def test_an_archive_never_goes_back_behind_what_another_process_packed(tmp_path, monkeypatch):
    """The plan packs every few seconds, and the suite behind every row: who read first must not write last."""
    (tmp_path / "work").mkdir()
    archive, reading, packed = tmp_path / plan.ARCHIVE, threading.Event(), threading.Event()

    def slowly(source, target):
        if not reading.is_set():
            reading.set()
            packed.wait(0.3)
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(packing.os, "replace", slowly)
    monkeypatch.setattr(packing.os, "getpid", threading.get_ident)  # as two processes
    first = threading.Thread(target=packing.pack, args=(tmp_path / "work", archive))
    first.start()
    assert reading.wait(5)
    (tmp_path / "work" / "row.json").write_text("{}")
    packing.pack(tmp_path / "work", archive)
    packed.set()
    first.join()
    with tarfile.open(archive) as found:
        assert found.getnames() == ["row.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"work", plan.ARCHIVE}


def test_a_result_keeps_the_spaces_of_its_texts(tmp_path):
    result = {"rows": [{"printed": ["  a   b", "", "c  "], "runs": [1.5, 2.0]}], "none": []}
    results.write(tmp_path / "r.json", result)
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(result)) and "[1.5, 2.0]" in text
