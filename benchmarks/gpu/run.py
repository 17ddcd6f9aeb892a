"""The GPU benchmark: python -m benchmarks.gpu.run OUT [--dry-run] [part ...]; see benchmarks/gpu.sh."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTS = {  # in this order; name: module and function, seconds that it may take
    "environment": ("environment:run", 60),
    "checks": ("checks:run", 300),
    "peer": ("checks:peer", 90),
    "forward_vim_tiny": ("forward:tiny", 150),
    "forward_vim_small": ("forward:small", 150),
    "forward_vim_base": ("forward:base", 150),
    "training": ("training:run", 200),
    "operators": ("operators:run", 150),
    "numerics": ("numerics:run", 150),
    "compiled_vim_tiny": ("forward:compiled_tiny", 240),
    "compiled_vim_small": ("forward:compiled_small", 240),
    "compiled_vim_base": ("forward:compiled_base", 240),
}
BESIDE_THE_BUILD = ("environment", "checks")  # the others time something, or need what is being built
GATES = ("checks", "peer")  # what is wrong is not timed
NEEDED = ("torch", "timm", "pytest", "sklearn")
DRY = {name: part for name, part in PARTS.items() if "_vim_" not in name} | {
    "forward_vim_nano": ("forward:nano", 60)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that have no result yet, each in a process of its own, until the time is used up.

    Returns:
        0 when every part has a result; 3 when some are left for another call; 1 when one failed (behind a failed check
        nothing runs but what the call names); 2 when this machine or folder cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the results, one JSON file a part")
    parser.add_argument("part", nargs="*", help="parts to run; default: all")
    parser.add_argument(
        "--dry-run", action="store_true", help="a tiny model on the CPU, stand-ins for the rest"
    )
    parser.add_argument("--budget", type=float, default=530.0, help="seconds that a call may take")
    parser.add_argument("--upstream", type=Path, help="folder with upstream's sdists, see build.py")
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # run this one part in this process
    options = parser.parse_intermixed_args(argv)
    if options.inside:
        return inside(options, options.inside)
    parts = DRY if options.dry_run else PARTS
    unknown = [name for name in options.part if name not in parts]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such part; there are {', '.join(parts)}")
    problem = preflight(options.dry_run) or make_room(options.out, options.dry_run)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    build = start_build(options)
    try:
        code = run_parts(options, parts, build)
    finally:
        stop(build)
    print(summary(options.out))
    return code


def run_parts(options: argparse.Namespace, parts: dict[str, tuple], build: subprocess.Popen | None) -> int:
    """Run what has no result yet and fits into the time that is left.

    Returns:
        The exit code.
    """
    end, code, ran = time.monotonic() + options.budget, 0, False
    for name in options.part or parts:
        file, seconds = options.out / f"{name}.json", parts[name][1]
        if done(file):
            continue
        if build is not None and name not in BESIDE_THE_BUILD:
            with contextlib.suppress(subprocess.TimeoutExpired):
                build.wait(max(0.0, end - time.monotonic()))
        left = end - time.monotonic()
        # A part that is stopped leaves nothing: it starts if it can end, and the first one of a call in any case.
        if left <= 0 or (ran and left < seconds):
            code = max(code, 3)
            if name in GATES:
                break
            continue
        print(f"{name} ...", flush=True)
        ran = True
        if options.dry_run:
            inside(options, name)
        else:
            run_part(options, name, seconds)
        if not done(file):
            code = 1
            if name in GATES:
                print(f"{name} failed, see {file}; parts that are named are timed all the same.")
                break
    return code


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


def make_room(out: Path, dry: bool) -> str | None:
    """Make the folder of the results; dry and real ones do not mix: the latter replace the former.

    Returns:
        Why it cannot be used.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file in (out / f"{name}.json" for name in {**PARTS, **DRY}):
            if not file.exists():
                continue
            was_dry = json.loads(file.read_text()).get("environment", {}).get("dry_run")
            if dry and was_dry is False:
                return f"{file} is of a real run, which a dry one does not replace; give another OUT."
            if was_dry and not dry:
                file.unlink()
    except OSError as error:
        return f"{out} cannot be used ({error.strerror}); give another OUT."
    return None


def done(file: Path) -> bool:
    """Whether a part has a result; a failure is tried again."""
    return file.exists() and json.loads(file.read_text())["error"] is None


def start_build(options: argparse.Namespace) -> subprocess.Popen | None:
    """Compile upstream beside the first parts."""
    folder = options.out / "upstream"
    if options.dry_run or options.upstream is None or (folder / "build.json").exists():
        return None
    folder.mkdir(exist_ok=True)
    log = (folder / "build.log").open("w")
    command = [sys.executable, "-m", "benchmarks.gpu.build", str(options.upstream), str(folder)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=root, start_new_session=True)


def stop(process: subprocess.Popen | None) -> None:
    """End a process and all that it has started (compilers, pytest's workers)."""
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_part(options: argparse.Namespace, name: str, seconds: float) -> None:
    """Run a part in a process of its own; it writes its file itself, unless it crashes or takes too long."""
    command = [sys.executable, "-m", "benchmarks.gpu.run", str(options.out), "--inside", name]
    file = options.out / f"{name}.json"
    file.unlink(missing_ok=True)  # of a failure: the part is tried again
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(seconds)
        if not file.exists():
            write(file, {"part": name, "error": f"exit code {code}", "result": None})
    except subprocess.TimeoutExpired:
        write(file, {"part": name, "error": f"took longer than {seconds:.0f} s", "result": None})
    finally:
        stop(process)


def inside(options: argparse.Namespace, name: str) -> int:
    """Run one part here and write its file."""
    from benchmarks.gpu.setting import Setting, describe

    setting = Setting(options.out, options.dry_run)
    module, function = (DRY if options.dry_run else PARTS)[name][0].split(":")
    report: dict[str, Any] = {"part": name, "error": None, "result": None}
    start = time.perf_counter()
    printed = io.StringIO()  # a training that has to fail would look like one that is to be taken for real
    try:
        report |= {"environment": describe(setting)}
        with contextlib.redirect_stdout(printed):
            report["result"] = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(setting)
    except Exception as error:  # written down, so that the other parts go on
        report["error"] = f"{type(error).__name__}: {error}"[-4000:]
        report["traceback"] = traceback.format_exc().splitlines()[-60:]
    report["printed"] = printed.getvalue().splitlines()
    report["seconds"] = round(time.perf_counter() - start, 1)
    write(options.out / f"{name}.json", report)
    return 0 if report["error"] is None else 1


def write(file: Path, report: dict[str, Any]) -> None:
    """All of it or nothing."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1))
    os.replace(temporary, file)


def summary(out: Path) -> str:
    """A line a part, and the ratios that the targets are about."""
    lines = []
    for file in sorted(out.glob("*.json")):
        report = json.loads(file.read_text())
        state = "ok" if report["error"] is None else f"FAILED: {report['error'][:300]}"
        dry = report.get("environment", {}).get("dry_run")
        note = "  (dry run: nothing here is a measurement)" if dry else ""
        lines.append(f"{report['part']:<20} {report.get('seconds', 0):>6} s  {state}{note}")
        result = report["result"] or {}
        for key, value in (result.get("ratios") or {}).items():
            lines.append(f"    {key:<52} {value:.2f}")
        for key, value in result.items():
            for ratio in ("upstream / ours", "upstream / ours, graphed"):
                if isinstance(value, dict) and ratio in value:
                    lines.append(f"    {key}, step: {ratio:<40} {value[ratio]:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
