"""The plan for a rented GPU: its parts run dry, fit into calls and survive cuts; the floors are those we published."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import tarfile
from argparse import Namespace
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from benchmarks import build, cli, floors, packing, plan, results
from benchmarks.plan import DRY, PARTS, main
from rmeeto.engine import record
from rmeeto.ops import triton_support
from tests import forked
from tests.benchmarks.test_cut import archived, call
from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_dry_run_does_every_part_once(tmp_path):
    first = call(tmp_path / "out", "--dry-run", "--budget", "600")
    text, _ = first.communicate()
    assert first.returncode == 0, text
    found = archived(tmp_path / "out")
    assert set(found) == {"checks", "models", "training", "operators", "ncu", "fashion"}
    assert all(result["quick"] and "failed" not in result for result in found.values())
    assert {row["check"] for row in found["checks"]["checks"]} >= {
        "kernels",
        "golden",
        "no_sync",
        "captured_step",
        "finite_guard",
    }
    assert any("over_peer" in row for row in found["models"]["rows"])
    assert [file.name for file in (tmp_path / "out").iterdir()] == [plan.ARCHIVE]
    shutil.rmtree(tmp_path / "work")  # on another machine, with what came back
    again = call(tmp_path / "out", "--dry-run")
    text, _ = again.communicate()
    assert again.returncode == 0 and "..." not in text


def test_parts_are_left_for_another_call_when_the_time_is_up(tmp_path):
    assert main([str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--dry-run", "--budget", "0"]) == 3
    assert archived(tmp_path / "out") == {}


def test_the_plan_says_what_a_cut_leaves(tmp_path, capsys):
    assert main([str(tmp_path / "out"), "--plan"]) == 0
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PARTS) and "ends at s" in head and "Cut" in last
    ends, calls = ([int(line.split()[i]) for line in lines] for i in (3, 4))
    assert ends == list(accumulate(part.expected for part in PARTS.values()))
    assert calls == sorted(calls) and calls[0] == 1 and "not yet measured" in last
    first = [name for name, number in zip(PARTS, calls) if number == 1]
    assert first == ["warm", "headline", "beside"] and calls[list(PARTS).index("training")] == 2
    assert not (tmp_path / "out").exists()


def test_a_damaged_archive_is_one_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "preflight", lambda dry: None)
    (tmp_path / plan.ARCHIVE).write_bytes(b"no archive")
    assert main([str(tmp_path), "--work", str(tmp_path / "work")]) == 2
    assert "cannot be unpacked" in one_error(capsys)


def test_what_was_made_ahead_is_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "preflight", lambda dry: None)
    monkeypatch.setattr(plan, "run_parts", lambda *_: 0)
    (tmp_path / "made/triton/key").mkdir(parents=True)
    (tmp_path / "made/triton/key/kernel.cubin").write_bytes(b"code")
    packing.pack(tmp_path / "made", tmp_path / "ahead.tar.gz", ["triton/*/*"])
    flags = [
        str(tmp_path / "out"),
        "--work",
        str(tmp_path / "work"),
        "--ahead",
        str(tmp_path / "ahead.tar.gz"),
    ]
    assert main(flags) == 0
    kernel = tmp_path / "work/triton/key/kernel.cubin"
    assert kernel.read_bytes() == b"code"
    kernel.write_bytes(b"newer")
    assert main(flags) == 0 and kernel.read_bytes() == b"newer"


@pytest.fixture
def copied(tmp_path):
    """The script in a repository whose benchmark only prints its arguments."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "gpu.sh", tmp_path / "benchmarks")
    (tmp_path / "benchmarks" / "plan.py").write_text("import sys; print(*sys.argv[1:], sep='|')")
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
    environment = {**os.environ, "PYTHON": PYTHON}
    finished = subprocess.run(command, cwd=copied / "else where", env=environment, capture_output=True, text=True)
    assert finished.stdout.strip() == passed.format(root=copied), finished.stderr
    assert not (copied / "runs").exists()


def one_error(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and len(captured.err.splitlines()) <= 2 and not captured.out
    return captured.err


@pytest.mark.parametrize("name", plan.NEEDED)
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


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file" / "out"), "--dry-run"]) == 2
    assert "cannot be used (Not a directory)" in one_error(capsys)


def test_a_wrong_call_says_what_there_is(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path), "--dry-run", "speed"])
    assert error.value.code == 2
    assert "speed: no such part; there are warm, headline" in capsys.readouterr().err


def test_the_parts_are_commands_and_end_within_a_call(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for part in [*PARTS.values(), *DRY.values()]:
        if part.module == "benchmarks":
            cli.parse(part.arguments.split())
        assert part.expected < part.seconds < max(plan.CALLS)


@pytest.mark.parametrize(
    ("embed", "r", "fused"), [(192, 0, 3.44), (384, 0, 7.4), (768, 0, 17.4), (192, 11, 2.39), (384, 11, 5.1)]
)
def test_floors_at_batch_128_on_one_h200(embed, r, fused):
    """Milliseconds of a Vim's 24 blocks, as estimated by hand when the kernels were cut."""
    h200 = floors.Rates(bytes=4.3e12, flops=790e12, exps=132 * 16 * 1.755e9)
    seconds = floors.forward(128, [197 - r * (i // 2) for i in range(24)], embed, h200)
    assert seconds * 1e3 == pytest.approx(fused, rel=0.08)


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
    """A real run on a clock of its own; every part takes as long as expected. Gives (call, parts run)."""
    clock, ran = [0.0], []
    names = {part: name for name, part in PARTS.items()}

    def run_part(options, part):
        clock[0] += part.expected
        ran.append(names[part])
        return "exit code 1" if names[part] in broken else "done"

    broken: set[str] = set()
    monkeypatch.setattr(plan, "preflight", lambda dry: None)
    monkeypatch.setattr(plan.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(plan, "run_part", run_part)

    def call(*arguments: str, failing: tuple[str, ...] = ()) -> tuple[int, list[str]]:
        broken.clear()
        broken.update(failing)
        ran.clear()
        return main([str(tmp_path / "out"), "--work", str(tmp_path / "work"), *arguments]), list(ran)

    return call


def test_no_part_starts_that_the_time_left_may_stop_and_the_first_call_gives_what_is_wanted_most(timed):
    code, first = timed()
    assert code == 3 and first == ["warm", "headline", "beside"]
    calls = [first]
    while code == 3:
        code, ran = timed()
        assert ran and sum(PARTS[name].expected for name in ran) <= plan.CALLS[1]
        calls.append(ran)
    assert code == 0 and sorted(sum(calls, [])) == sorted(PARTS)
    assert "training" in calls[1] and "fashion" in sum(calls[:4], [])


def test_the_first_part_of_a_call_starts_in_any_case(timed):
    assert timed("--budget", "20") == (3, ["warm"])
    assert timed("--budget", "20") == (3, ["headline"])


def test_a_part_that_failed_is_tried_again_and_the_others_go_on(timed):
    code, ran = timed("warm", "training_tiny", "--budget", "400", failing=("warm",))
    assert (code, ran) == (1, ["warm", "training_tiny"])
    assert timed("warm", "training_tiny", "training_base") == (0, ["training_base", "warm"])


def test_a_part_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path, monkeypatch):
    child = tmp_path / "child"
    slow = ["sh", "-c", f"sleep 1000 & echo $! > {shlex.quote(str(child))}; sleep 1000"]
    start = subprocess.Popen
    monkeypatch.setattr(plan.subprocess, "Popen", lambda command, **k: start(slow, **k))
    (tmp_path / "models-bf16-x-pt1.json").write_text("{}")
    options = Namespace(out=tmp_path, work=tmp_path, dry_run=True)
    assert plan.run_part(options, plan.Part("training", 3, 1, "")) == "took longer than 3 s"
    with tarfile.open(tmp_path / "results.tar.gz") as packed:
        assert packed.getnames() == ["models-bf16-x-pt1.json"], "what was measured by then"
    state = Path(f"/proc/{child.read_text()}/stat")
    forked.until(lambda: not state.exists() or state.read_text().split()[2] == "Z")


def test_a_copy_without_its_history_names_its_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("COMMIT", "abc")
    assert results.begin(tmp_path / "none", "ops", "fp32", torch.device("cpu"))["commit"] == "abc"


def test_a_copy_inside_another_checkout_does_not_take_its_commit(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(tmp_path)]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "another project"]):
        subprocess.run([*git, *arguments], check=True)
    (tmp_path / "project").mkdir()
    monkeypatch.setattr(record, "_ROOT", tmp_path / "project")
    monkeypatch.setenv("COMMIT", "abc")
    begun = results.begin(tmp_path / "none", "ops", "fp32", torch.device("cpu"))
    assert begun["commit"] == "abc"


def test_nothing_that_a_gpu_machine_may_lack_is_needed_to_measure_models(tmp_path):
    script = (
        "import sys; sys.modules.update(av=None, matplotlib=None, tensorboard=None)\n"
        "from benchmarks.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    flags = [
        "models",
        "--quick",
        "--runs",
        "5",
        "--batch",
        "1",
        "--dtype",
        "bf16",
        "--modes",
        "eager",
        "--r",
        "0",
    ]
    done = subprocess.run(
        [PYTHON, "-c", script, *flags, "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
