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

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "timm", "pytest", "sklearn")


class Part(NamedTuple):
    """A call of `python -m benchmarks`.

    Args:
        arguments: of the call.
        seconds: that it may take; what it has measured by then is kept.
        expected: seconds that it is thought to take.
    """

    arguments: str
    seconds: int
    expected: int


def _model_parts(sizes: Sequence[str]) -> dict[str, Part]:
    parts = {}
    for size in sizes:
        chosen = f"--dtype bf16 --models vim_{size}"
        parts[f"models_{size}"] = Part(f"models {chosen} --batch 128", 150, 80)
        parts[f"training_{size}"] = Part(f"training {chosen}", 120, 60)
    return parts


_ALL = "--dtype bf16 --models vim_small vim_tiny vim_base"
PARTS = {  # what is wanted most comes first: a call may be cut anywhere
    "checks": Part("checks", 300, 200),
    **_model_parts(["small"]),
    "operators": Part("operators --dtype bf16", 200, 120),
    **_model_parts(["tiny", "base"]),
    "batches": Part(f"models {_ALL} --batch 8 1", 240, 150),
    "compiled": Part(f"models {_ALL} --batch 128 --modes compiled compiled-graphed", 500, 400),
}
BESIDE_THE_BUILD = ("checks",)  # the others time something
_QUICK = "--quick --runs 5 --dtype bf16"
DRY = {
    "checks": Part("checks --quick", 300, 40),
    "models": Part(f"models {_QUICK} --batch 2 --modes eager --backends auto peer", 60, 5),
    "training": Part(f"training {_QUICK} --backends auto peer", 60, 5),
    "operators": Part(f"operators {_QUICK}", 60, 5),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are not done, each in a process of its own, until the time is used up.

    Returns:
        0 when every part is done; 3 when some are left for another call; 1 when one failed or refused something; 2 when
        this machine or folder cannot be used.
    """
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("part", nargs="*", help="parts to run; default: all")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny sizes on the CPU, stand-ins for upstream"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the parts and what a cut leaves; runs nothing"
    )
    parser.add_argument("--budget", type=float, default=530.0, help="seconds that a call may take")
    parser.add_argument("--upstream", type=Path, help="folder with upstream's sdists, see build.py")
    options = parser.parse_intermixed_args(argv)
    parts = DRY if options.dry_run else PARTS
    unknown = [name for name in options.part if name not in parts]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such part; there are {', '.join(parts)}")
    chosen = {name: parts[name] for name in options.part or parts}
    if options.plan:
        print(plan(chosen, options.budget))
        return 0
    problem = preflight(options.dry_run) or _make(options.out)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    build = start_build(options)
    try:
        return run_parts(options, chosen, build)
    finally:
        stop(build)
        archive(options.out)


def _make(out: Path) -> str | None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{out} cannot be used ({error.strerror}); give another OUT."
    return None


def plan(parts: dict[str, Part], budget: float) -> str:
    """A line a part, by expected and by longest times: when each ends, and which call of ``budget`` seconds that is."""
    lines, end, call, left = (
        [f"{'part':<16}{'expected s':>12}{'at most s':>11}{'ends at s':>11}{'call':>6}"],
        0,
        1,
        budget,
    )
    for name, part in parts.items():
        if left < part.seconds and left < budget:
            call, left = call + 1, budget
        end, left = end + part.expected, left - part.expected
        lines.append(f"{name:<16}{part.expected:>12}{part.seconds:>11}{end:>11}{call:>6}  {part.arguments}")
    return "\n".join(
        [*lines, "Cut at any second, what ended before it is whole, and most of the part that ran."]
    )


def run_parts(options: argparse.Namespace, parts: dict[str, Part], build: subprocess.Popen | None) -> int:
    """Run what is not done and fits into the time that is left.

    Returns:
        The exit code.
    """
    end, code, ran, file = time.monotonic() + options.budget, 0, False, options.out / "plan.json"
    states = json.loads(file.read_text()) if file.exists() else {}
    keys = {name: f"{name}, dry" if options.dry_run else name for name in parts}
    for name, key in sorted(keys.items(), key=lambda item: item[1] in states):  # what failed comes last
        part = parts[name]
        if states.get(key) == "done":
            continue
        if build is not None and name not in BESIDE_THE_BUILD:
            with contextlib.suppress(subprocess.TimeoutExpired):
                build.wait(max(0.0, end - time.monotonic()))
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
    where = ["--device", "cpu" if options.dry_run else "cuda", "--out", str(options.out), "--resume"]
    peer = part.arguments.split()[0] != "checks" and (options.out / "upstream" / "build.json").exists()
    where += ["--upstream", str(options.out / "upstream")] * (peer and not options.dry_run)
    command = [sys.executable, "-m", "benchmarks", *part.arguments.split(), *where]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    end = time.monotonic() + part.seconds
    try:
        while time.monotonic() < end:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(min(5.0, max(0.0, end - time.monotonic())))
                return {0: "done", 1: "something failed or was refused"}.get(code, f"exit code {code}")
            archive(options.out)
        return f"took longer than {part.seconds} s"
    finally:
        stop(process)


def archive(out: Path) -> None:
    """All results as one file, for machines that give few files back: `results.tar.gz`."""
    temporary = out / "results.tmp"
    with tarfile.open(temporary, "w:gz") as packed:
        for file in sorted([*out.glob("*.json"), *out.glob("upstream/build.*")]):
            packed.add(file, file.relative_to(out))
    os.replace(temporary, out / "results.tar.gz")


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
    folder = options.out / "upstream"
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
