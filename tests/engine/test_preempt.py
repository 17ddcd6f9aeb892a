"""SIGTERM and SIGUSR1: a checkpoint of the step that was reached, exit code 75, and a resumed run like any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from rmeeto.engine.preempt import EXIT_CODE

LAUNCHER = ("-m", "rmeeto.cli.launch", "--standalone", "--nproc_per_node", "2")
ROOT = Path(__file__).resolve().parents[2]
RUN = [
    "--data_set", "digits", "--num_workers", "0", "--batch_size", "32", "--accumulation", "1",
    "--repeated_aug", "False", "--epochs", "1", "--log_every", "1",
]  # fmt: skip


def start(folder: Path, *flags: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [
        sys.executable,
        *launcher,
        "-m",
        "image_task.main",
        *RUN,
        "--output_dir",
        str(folder),
        "--name",
        "run",
    ]
    return subprocess.Popen(
        [*command, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def steps(folder: Path) -> int:
    log = folder / "run" / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return sum('"step"' in line.split(",")[0] for line in lines)


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.time() + 120
    while not condition():
        assert process.poll() is None and time.time() < end, process.communicate()
        time.sleep(0.02)


def test_a_notice_saves_and_the_run_goes_on_to_the_same_weights(tmp_path):
    number = signal.SIGUSR1  # SIGTERM below
    process = start(tmp_path / "cut")
    wait_for(lambda: steps(tmp_path / "cut") >= 5, process)
    began = time.time()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE == 75 and time.time() - began < 30
    (line,) = [line for line in errors.splitlines() if "stopped by" in line]
    assert number.name in line and "--resume goes on from" in line and "Traceback" not in errors
    saved = torch.load(tmp_path / "cut/run/last.pt", weights_only=True)["position"]
    assert saved["step"] >= 5 and saved["epoch"] == 0
    resumed, whole = start(tmp_path / "cut", "--resume"), start(tmp_path / "whole")
    for process in (resumed, whole):
        assert process.wait(timeout=200) == 0, process.communicate()
    assert f"step {saved['step']}" in resumed.communicate()[0]
    one, other = (torch.load(tmp_path / name / "run/last.pt", weights_only=True) for name in ("cut", "whole"))
    assert all(torch.equal(a, other["model"][key]) for key, a in one["model"].items())
    results = [json.loads((tmp_path / name / "run/result.json").read_text()) for name in ("cut", "whole")]
    assert results[0] == results[1]


def test_two_processes_leave_together_with_one_line(tmp_path):
    process = start(tmp_path, launcher=LAUNCHER)
    wait_for(lambda: steps(tmp_path) >= 3, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == EXIT_CODE, errors
    assert errors.count("stopped by SIGTERM") == 1 and "Traceback" not in errors
    assert (tmp_path / "run/last.pt").exists()


def test_who_survives_a_killed_process_says_so_in_a_line(tmp_path):
    process = start(tmp_path, launcher=LAUNCHER)
    wait_for(lambda: steps(tmp_path) >= 2, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    began = time.time()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode not in (0, 2, EXIT_CODE) and time.time() - began < 30
    assert "Traceback" not in errors and "ended by signal 9; the others were stopped" in errors


def test_an_error_under_the_launcher_is_its_one_line(tmp_path):
    process = start(
        tmp_path, "--data_path", "/nowhere", "--data_set", "folder",
        launcher=LAUNCHER,
    )  # fmt: skip
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert [line for line in errors.splitlines() if line.startswith("error:")] and "Traceback" not in errors
    assert len(errors.splitlines()) < 8, errors
