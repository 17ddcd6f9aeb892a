"""The suites on one rented GPU, part by part: python -m benchmarks.plan OUT [--dry-run | --plan] [part ...].

See `benchmarks/gpu.sh`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.packing import pack

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE, STATES = "results.tar.gz", "plan.json"
NEEDED = ("torch", "timm", "pytest", "sklearn")


class Part(NamedTuple):
    """A call of `python -m MODULE`.

    Args:
        arguments: of the call.
        seconds: that it may take; what it has measured by then is kept.
        expected: seconds that it is thought to take.
        leaves: what is known when it has ended.
        peer: whether it is measured beside upstream's kernels, for whose build it waits.
        module: `benchmarks`, or one that takes its options.
    """

    arguments: str
    seconds: int
    expected: int
    leaves: str
    peer: bool = False
    module: str = "benchmarks"


_BF16 = "--dtype bf16 --models"
_GRAPHED = "--batch 128 --modes graphed"
# What is wanted most comes first: a call may be cut anywhere. All seconds are estimates: not yet measured.
PARTS = {
    "warm": Part("warm", 150, 110, "whether the kernels are right; all are compiled", module="benchmarks.ahead"),
    "headline": Part(f"models {_BF16} vim_small --batch 128 --modes graphed eager", 60, 40, "Vim-S: r = 0, 5, 11"),
    "beside": Part(f"models {_BF16} vim_small {_GRAPHED} --backends auto peer", 70, 45, "Vim-S over upstream", True),
    "training": Part(f"training {_BF16} vim_small", 100, 60, "a step of Vim-S with its teacher, over upstream", True),
    "ncu": Part("ncu", 60, 30, "what the scan's three launches wait for"),
    "operators": Part("operators --dtype bf16", 120, 90, "every operator; which tiles the scan should have", True),
    "tiny": Part(f"models {_BF16} vim_tiny {_GRAPHED}", 50, 30, "Vim-Ti"),
    "training_tiny": Part(f"training {_BF16} vim_tiny", 70, 40, "a step of Vim-Ti"),
    "batches": Part(f"models {_BF16} vim_small --batch 8 1 --modes graphed", 60, 40, "Vim-S at small batches"),
    "base": Part(f"models {_BF16} vim_base {_GRAPHED}", 80, 50, "Vim-B"),
    "fashion": Part("fashion", 300, 116, "Fashion-MNIST, three seeds: all that the CPU's evidence has"),
    "training_base": Part(f"training {_BF16} vim_base", 120, 70, "a step of Vim-B"),
    "compiled": Part(f"models {_BF16} vim_small --batch 128 --modes compiled-graphed", 240, 200, "torch.compile"),
}
CALLS = 235, 470  # seconds of the first call, and of each behind it
_QUICK = "--quick --runs 5 --dtype bf16"
DRY = {
    "warm": Part("warm --quick", 300, 40, "checks"),
    "headline": Part(f"models {_QUICK} --batch 2 --modes eager", 60, 5, "rows of models"),
    "beside": Part(f"models {_QUICK} --batch 2 --modes eager --backends auto peer", 60, 5, "rows beside a peer", True),
    "training": Part(f"training {_QUICK} --backends auto peer", 60, 5, "rows of training", True),
    "ncu": Part("ncu --quick", 60, 5, "that there is no GPU"),
    "operators": Part(f"operators {_QUICK}", 60, 5, "rows of operators", True),
    "fashion": Part("fashion --quick", 300, 10, "that there is no data, or that the recipes are sound"),
}
DRY = {name: part._replace(module=PARTS[name].module) for name, part in DRY.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are not done, each in a process of its own, until the time is used up.

    Returns:
        0 when every part is done; 3 when some are left for another call; 1 when one failed or refused something; 2 when
        this machine or folder cannot be used.
    """
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("part", nargs="*", help="parts to run; default: all")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, stand-ins for upstream")
    parser.add_argument("--plan", action="store_true", help="print the parts and what a cut leaves; runs nothing")
    parser.add_argument(
        "--budget", type=float, help=f"seconds that a call may take; default: {CALLS[0]}, then {CALLS[1]}"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs/gpu-work", help="folder of the parts' own files")
    parser.add_argument("--upstream", type=Path, help="folder with upstream's sdists, see build.py")
    parser.add_argument("--ahead", type=Path, help="archive that benchmarks.ahead made, for this kind of machine")
    options = parser.parse_intermixed_args(argv)
    parts = DRY if options.dry_run else PARTS
    unknown = [name for name in options.part if name not in parts]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such part; there are {', '.join(parts)}")
    chosen = {name: parts[name] for name in options.part or parts}
    if options.plan:
        print(plan(chosen))
        return 0
    options.out, options.work = options.out.resolve(), options.work.resolve()
    problem = preflight(options.dry_run) or _make(options.out) or _make(options.work) or _unpack(options)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    build = start_build(options)
    try:
        return run_parts(options, chosen, build)
    finally:
        stop(build)
        pack(options.work, options.out / ARCHIVE)


def _make(out: Path) -> str | None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{out} cannot be used ({error.strerror}); give another OUT."
    return None


def _unpack(options: argparse.Namespace) -> str | None:
    """What an earlier call has brought back, and what was made ahead."""
    before = options.out / ARCHIVE
    archives = [] if (options.work / STATES).exists() or not before.exists() else [before]
    archives += [options.ahead] if options.ahead is not None and not (options.work / "triton").exists() else []
    for path in archives:
        try:
            with tarfile.open(path) as packed:
                packed.extractall(options.work, filter="data")
        except (OSError, tarfile.TarError) as error:
            reason = str(error).splitlines()[0]
            return f"{path} cannot be unpacked ({reason}); leave it out, or make it again."
    return None


def plan(parts: dict[str, Part]) -> str:
    """A line a part: when it ends, in which call, and what a cut behind it leaves."""
    lines = [f"{'part':<14}{'expected s':>11}{'at most s':>10}{'ends at s':>10}{'call':>5}  {'a cut behind it leaves'}"]
    end, call, left = 0, 1, float(CALLS[0])
    for name, part in parts.items():
        if left < part.seconds and left < CALLS[min(call, 2) - 1]:
            call, left = call + 1, float(CALLS[1])
        end, left = end + part.expected, left - part.expected
        lines.append(f"{name:<14}{part.expected:>11}{part.seconds:>10}{end:>10}{call:>5}  {part.leaves}")
    return "\n".join(
        [
            *lines,
            f"Calls of {CALLS[0]} s and then {CALLS[1]} s; seconds are estimates, not yet measured. Cut at any second, "
            f"every row that was shown is in OUT/{ARCHIVE}.",
        ]
    )


def run_parts(options: argparse.Namespace, parts: dict[str, Part], build: subprocess.Popen | None) -> int:
    """Run what is not done and fits into the time that is left.

    Returns:
        The exit code.
    """
    file, code, ran = options.work / STATES, 0, False
    states = json.loads(file.read_text()) if file.exists() else {}
    end = time.monotonic() + (options.budget if options.budget is not None else CALLS[bool(states)])
    keys = {name: f"{name}, dry" if options.dry_run else name for name in parts}
    for name, key in sorted(keys.items(), key=lambda item: item[1] in states):  # what failed comes last
        part = parts[name]
        if states.get(key) == "done":
            continue
        if build is not None and part.peer:
            with contextlib.suppress(subprocess.TimeoutExpired):
                build.wait(max(0.0, end - part.seconds - time.monotonic()))
        left = end - time.monotonic()
        # What a part that is stopped measured last is lost: it starts if it can end, the first of a call in any case.
        if left <= 0 or (ran and left < part.seconds):
            code = max(code, 3)
            continue
        print(f"{name} ...", flush=True)
        ran, start = True, time.monotonic()
        states[key] = run_part(options, part)
        print(f"{name}: {states[key]}, {time.monotonic() - start:.0f} s", flush=True)
        file.write_text(json.dumps(states, indent=1))
        code = code if states[key] == "done" else 1
    return code


def run_part(options: argparse.Namespace, part: Part) -> str:
    """Run a part in a process of its own, and pack the results every few seconds.

    Returns:
        ``done``, or what went wrong.
    """
    archive = options.out / ARCHIVE
    where = ["--device", "cpu" if options.dry_run else "cuda", "--out", str(options.work), "--resume"]
    where += ["--archive", str(archive)]
    if part.peer and not options.dry_run and (options.work / "upstream" / "build.json").exists():
        where += ["--upstream", str(options.work / "upstream")]
    command = [sys.executable, "-m", part.module, *part.arguments.split(), *where]
    environment = os.environ | {"TRITON_CACHE_DIR": str(options.work / "triton")}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, env=environment)
    end = time.monotonic() + part.seconds
    try:
        while time.monotonic() < end:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(min(5.0, max(0.0, end - time.monotonic())))
                return {0: "done", 1: "something failed or was refused"}.get(code, f"exit code {code}")
            pack(options.work, archive)
        return f"took longer than {part.seconds} s"
    finally:
        stop(process)
        pack(options.work, archive)


def preflight(dry: bool) -> str | None:
    """What this machine lacks to run any part, and what to do about it."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"{sys.executable} has no {', '.join(missing)}; the parts need {', '.join(NEEDED)}: install what is "
            "missing, or let PYTHON name an interpreter that has them."
        )
    if dry:
        return None
    from rmeeto.ops.backend import BackendUnavailable  # torch has been found
    from rmeeto.ops.triton_support import OLDEST, require_triton

    try:
        require_triton()
    except BackendUnavailable as error:
        return (
            f"the kernels cannot run on this machine: {error}; expected an NVIDIA GPU of compute capability 8.0 or "
            f"newer that nvidia-smi lists,\na CUDA build of torch and Triton {'.'.join(map(str, OLDEST))} or newer; "
            "--dry-run does without."
        )
    return None


def start_build(options: argparse.Namespace) -> subprocess.Popen | None:
    """Compile upstream beside the first parts."""
    folder = options.work / "upstream"
    if options.dry_run or options.upstream is None or (folder / "build.json").exists():
        return None
    folder.mkdir(exist_ok=True)
    log = (folder / "build.log").open("w")
    command = [sys.executable, "-m", "benchmarks.build", str(options.upstream), str(folder)]
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)


def stop(process: subprocess.Popen | None) -> None:
    """End a process and all that it has started (compilers, pytest's workers)."""
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
