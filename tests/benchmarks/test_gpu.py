"""The GPU benchmark, dry: every part runs, writes its file, and is not run twice; the floors are those we published."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import build, floors, run, setting
from benchmarks.gpu.run import DRY, PARTS, main
from rmeeto.ops import triton_support

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
    assert "rate " not in first.stdout and any("rate " in line for line in reports["numerics"]["printed"])

    (tmp_path / "operators.json").unlink()
    capsys.readouterr()
    assert main([str(tmp_path), "--dry-run"]) == 0
    ran = [line for line in capsys.readouterr().out.splitlines() if line.endswith("...")]
    assert ran == ["operators ..."]


def test_parts_are_left_for_another_call_when_the_time_is_up(tmp_path):
    assert main([str(tmp_path), "--dry-run", "--budget", "0"]) == 3
    assert not list(tmp_path.glob("*.json"))


@pytest.fixture
def copied(tmp_path):
    """The script in a repository whose benchmark only prints its arguments."""
    (tmp_path / "benchmarks" / "gpu").mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "gpu.sh", tmp_path / "benchmarks")
    (tmp_path / "benchmarks" / "gpu" / "run.py").write_text("import sys; print(*sys.argv[1:], sep='|')")
    (tmp_path / "else where").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ((), "{root}/runs/gpu"),
        (("--dry-run",), "{root}/runs/gpu|--dry-run"),
        (("--dry-run", "checks"), "{root}/runs/gpu|--dry-run|checks"),
        (("out", "--dry-run"), "{root}/else where/out|--dry-run"),
        (("/abs/out", "--dry-run", "checks"), "/abs/out|--dry-run|checks"),
    ],
    ids=str,
)
def test_out_may_be_left_out(given, passed, copied):
    command = ["bash", "../benchmarks/gpu.sh", *given]
    environment = {**os.environ, "PYTHON": sys.executable}
    finished = subprocess.run(
        command, cwd=copied / "else where", env=environment, capture_output=True, text=True
    )
    assert finished.stdout.strip() == passed.format(root=copied), finished.stderr
    assert not (copied / "runs").exists()


def one_error(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and len(captured.err.splitlines()) <= 2 and not captured.out
    return captured.err


@pytest.mark.parametrize("name", run.NEEDED)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["real", "dry"])
def test_a_missing_package_is_one_error(name, dry, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else find(wanted))
    assert main([str(tmp_path / "out"), *dry]) == 2
    assert f"has no {name}; the parts need" in one_error(capsys) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("found", "toolkit", "device", "capability", "message"),
    [
        ("3.5.1", "12.8", True, (9, 0), "needs Triton 3.6 or newer, found 3.5.1"),
        ("3.6.0", None, False, (9, 0), "torch is built without CUDA"),
        ("3.6.0", "12.8", False, (9, 0), "no CUDA device"),
        ("3.6.0", "12.8", True, (7, 5), "this GPU has 7.5"),
    ],
)
def test_a_machine_that_cannot_run_the_kernels_is_one_error(
    found, toolkit, device, capability, message, tmp_path, capsys, monkeypatch
):
    triton_support.require_triton.cache_clear()
    monkeypatch.setattr(triton_support, "version", lambda name: found)
    monkeypatch.setattr(torch.version, "cuda", toolkit)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert main([str(tmp_path / "out")]) == 2
    assert message in one_error(capsys) and not list(tmp_path.iterdir())


def test_dry_results_are_replaced_by_real_ones_and_never_the_other_way_round(tmp_path, capsys, monkeypatch):
    def record(name, dry):
        report = {"part": name, "error": None, "result": {}, "environment": {"dry_run": dry}}
        (tmp_path / f"{name}.json").write_text(json.dumps(report))

    monkeypatch.setattr(run, "preflight", lambda dry: None)
    monkeypatch.setattr(run, "run_part", lambda options, name, seconds: record(name, dry=False))
    record("checks", dry=True)
    record("forward_vim_nano", dry=True)
    assert main([str(tmp_path), "checks"]) == 0
    assert not json.loads((tmp_path / "checks.json").read_text())["environment"]["dry_run"]
    assert not (tmp_path / "forward_vim_nano.json").exists()
    capsys.readouterr()
    assert main([str(tmp_path), "--dry-run"]) == 2
    assert "checks.json is of a real run" in one_error(capsys)


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file" / "out"), "--dry-run"]) == 2
    assert "cannot be used (Not a directory)" in one_error(capsys)


def test_a_wrong_call_says_what_there_is(tmp_path, capsys):
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


def test_the_build_of_upstream_reports_each_extension_and_survives_a_stopped_one(tmp_path, monkeypatch):
    sdists, out = tmp_path / "from", tmp_path / "to"
    sdists.mkdir()
    (sdists / "einops-1-py3-none-any.whl").write_bytes(b"")
    for sdist, source in (("causal_conv1d-1", "csrc"), ("mamba_ssm-2", "csrc/selective_scan")):
        (tmp_path / sdist / source).mkdir(parents=True)
        (tmp_path / sdist / source / "kernel.cu").write_text("")
        with tarfile.open(sdists / f"{sdist}.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / sdist, sdist)
    lock = out / "selective_scan_cuda_build" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()  # what a build leaves behind that was stopped; torch would wait for it

    def load(name, sources, extra_cuda_cflags, build_directory, **_):
        assert [Path(source).name for source in sources] == ["kernel.cu"]
        assert extra_cuda_cflags[-1] == "-gencode=arch=compute_90,code=sm_90"
        if name == "causal_conv1d_cuda":
            raise RuntimeError("the compiler's message")
        assert not lock.exists()
        (Path(build_directory) / f"{name}.so").touch()

    monkeypatch.setattr("torch.utils.cpp_extension.load", load)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    build.main(sdists, out)
    report = json.loads((out / "build.json").read_text())
    assert report["error"] == "causal_conv1d_cuda: RuntimeError: the compiler's message"
    assert report["causal_conv1d_cuda"]["error"] and report["selective_scan_cuda"]["error"] is None
    assert (out / "selective_scan_cuda.so").exists() and (out / "einops-1-py3-none-any.whl").exists()


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """A real run on a clock of its own; every part takes half the time that it may take. Gives (call, parts run)."""
    clock, ran = [0.0], []

    def run_part(options, name, seconds):
        clock[0] += seconds / 2
        ran.append(name)
        error = "broken" if name in broken else None
        (options.out / f"{name}.json").write_text(json.dumps({"part": name, "error": error, "result": None}))

    broken: set[str] = set()
    monkeypatch.setattr(run, "preflight", lambda dry: None)
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(run, "run_part", run_part)

    def call(*arguments: str, failing: tuple[str, ...] = ()) -> tuple[int, list[str]]:
        broken.clear()
        broken.update(failing)
        ran.clear()
        return main([str(tmp_path), *arguments]), list(ran)

    return call


def test_no_part_starts_that_the_time_left_may_stop(timed):
    code, first = timed()
    assert code == 3 and first[:3] == ["environment", "checks", "peer"]
    assert sum(PARTS[name][1] / 2 for name in first) <= 530
    calls = [first]
    while code == 3:
        code, ran = timed()
        assert ran
        calls.append(ran)
    assert code == 0 and sorted(sum(calls, [])) == sorted(PARTS)


def test_the_first_part_of_a_call_starts_in_any_case(timed):
    assert timed("--budget", "20") == (3, ["environment"])
    assert timed("--budget", "20") == (3, ["checks"])


def test_nothing_is_timed_behind_a_failed_check_but_what_is_named(timed, capsys):
    assert timed(failing=("checks",)) == (1, ["environment", "checks"])
    assert "checks failed, see" in capsys.readouterr().out
    assert timed("training") == (0, ["training"])
    assert timed(failing=("peer",)) == (1, ["checks", "peer"])


def test_a_part_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path, monkeypatch):
    child = tmp_path / "child"
    script = tmp_path / "slow.py"
    script.write_text(
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(child)!r}, 'w').write(str(p.pid))\ntime.sleep(60)\n"
    )
    start = subprocess.Popen
    monkeypatch.setattr(
        run.subprocess, "Popen", lambda command, **k: start([sys.executable, str(script)], **k)
    )
    run.run_part(Namespace(out=tmp_path), "training", 3.0)
    assert json.loads((tmp_path / "training.json").read_text())["error"] == "took longer than 3 s"
    state = Path(f"/proc/{child.read_text()}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_without_git_or_measured_rates_a_part_still_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("COMMIT", "abc")
    assert setting.describe(setting.Setting(tmp_path, dry=True))["commit"] == "abc"
    (tmp_path / "environment.json").write_text(json.dumps({"error": "broken", "result": None}))
    assert setting.Setting(tmp_path, dry=False).rates() == floors.H200
