"""The command line of the benchmarks: which suites, where their results go, and what is printed."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import timm
import torch

from benchmarks import front, report, results, sizes, targets
from benchmarks.packing import pack
from benchmarks.results import Unit
from benchmarks.suites import APART, SUITES
from image_task.models import MODELS
from rmeeto.errors import UserError
from rmeeto.ops.backend import NAMES

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTION = """Measure operators, models, training steps and more, on a CPU or a GPU. The suite targets ends with the
ratios that the project holds itself to, as a table and as one line of JSON. Run it where nothing else runs."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = ("eager", "compiled", "graphed", "compiled-graphed")
CHOSEN = ("vim_tiny", "vim_small", "vim_base", "videomamba_tiny")
QUICK = ("vim_nano_patch2_16",)
ON_CPU = ("targets", "deploy", "breakdown", "formats")
DRAWN = {"front": front.draw, "sizes": sizes.draw}
USED_BY = {
    "dtype": ("operators", "models", "training", "memory"),
    "models": ("models", "training", "front"),
    "backends": ("models", "training"),
    "batch": ("models", "front"),
    "r": ("models", "front"),
    "modes": ("models", "front"),
    "max_pass": ("models",),
    "upstream": ("operators", "models", "training"),
    "data": ("formats", "schedules"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suites of a command line.

    Returns:
        The exit code: 0, 1 if anything was refused because it failed its parity test or otherwise, 2 for a user error,
        3 if the time was up before all was measured, 130 after Ctrl-C.
    """
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        return run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume goes on", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read and check a command line.

    Raises:
        UserError: a flag or value that cannot be used.
    """
    options = _flags().parse_args(argv)
    for name, suites in USED_BY.items():
        if getattr(options, name) is not None and options.suite not in (*suites, "all"):
            raise UserError(f"--{name} has no effect on {options.suite}; it belongs to {', '.join(suites)}.")
    if options.runs < 5:
        raise UserError(f"--runs is {options.runs}; expected 5 or more, for a median and its spread.")
    if options.minutes is not None and not options.minutes > 0:
        raise UserError(f"--minutes is {options.minutes}; expected more than 0, or leave it out.")
    on_gpu = torch.cuda.is_available() and options.device != "cpu" and options.suite not in ON_CPU
    if options.device == "cuda" and not on_gpu:
        raise UserError(
            "--device cuda: torch sees no GPU (python -m rmeeto.doctor says why), or the suite is the CPU's; use cpu."
        )
    for mode in options.modes or ():
        if "graphed" in mode and not on_gpu:
            raise UserError(f"--modes {mode} needs a GPU, and this runs on cpu.")
        if options.suite == "front" and mode not in front.MODES:
            raise UserError(f"--modes {mode}; the suite front takes {' and '.join(front.MODES)}.")
    options.device = torch.device("cuda" if on_gpu else "cpu")
    options.modes = options.modes or (
        list(front.MODES) if options.suite == "front" else ["eager", "graphed" if on_gpu else "compiled"]
    )
    chosen = options.models or (QUICK if options.quick else front.DEFAULT if options.suite == "front" else MODELS)
    options.models = [_registered(name) for name in chosen]
    small, large = (front.BATCHES, front.BATCHES) if options.suite == "front" else ([1, 2], [128, 8, 1])
    options.batch = options.batch or (small if options.quick else large)
    options.r = (list(front.R) if options.suite == "front" else [0, 5, 11]) if options.r is None else options.r
    options.backends = options.backends or ["auto", *(["peer"] if options.upstream else [])]
    options.max_pass = 5.0 if options.max_pass is None else options.max_pass
    options.data = options.data or ROOT / "data"
    options.out = options.out or (ROOT / "runs" / "benchmarks" if options.quick else results.FOLDER)
    return options


def _registered(name: str) -> str:
    """A model's name, from that name or ours without the end.

    Raises:
        UserError: no such model.
    """
    ours = {short.removeprefix("rmeeto_").partition("_patch")[0]: short for short in reversed(MODELS)}
    found = ours.get(name, name)
    if not timm.is_model(found):
        raise UserError(f"{name}: no such model; there are {', '.join(ours)}, and timm's.")
    return found


def _flags() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m benchmarks", description=DESCRIPTION, allow_abbrev=False)
    add, several = parser.add_argument, {"nargs": "+", "default": None}
    add("suite", choices=(*SUITES, "all"), help=f"targets: the CPU's; all: every suite but {', '.join(APART)}; "
        "and faults, with options of its own (faults --help)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dtype", choices=DTYPES, **several, help="of operators, models and training; default: both")
    add("--models", **several, help=f"default: {' '.join(CHOSEN)}")
    add("--batch", type=int, **several, help="of the models; default: 128 8 1")
    add("--r", type=int, **several, help="of the models; default: 0 5 11")
    add("--modes", choices=MODES, **several, help="of the models; default: eager, and compiled (GPU: graphed)")
    add("--backends", choices=(*NAMES, "peer"), **several,
        help="of models and training; peer: the model as it runs on upstream's kernels; default: auto")  # fmt: skip
    add("--upstream", type=Path, help="folder of upstream's kernels, built by benchmarks.build: adds peer")
    add("--data", type=Path, help="folder of FashionMNIST/raw, for formats and schedules; default: data")
    add("--max_pass", type=float, help="seconds; batches that take the models longer are left out")
    add("--runs", type=int, default=11, help="timed runs of each, 5 or more")
    add("--minutes", type=float, help="start nothing new after so many; --resume goes on; default: no limit")
    add("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing of use")
    add("--out", type=Path, default=None, help="folder; default: benchmarks/results (quick: runs/benchmarks)")
    add("--force", action="store_true", help="replace results that exist")
    add("--resume", action="store_true", help="go on with results that exist")
    add("--archive", type=Path, help="file that all results of --out are packed into behind every row")
    return parser


def run(options: argparse.Namespace) -> int:
    """Measure, print and write each suite; nothing is measured before every result's place is free.

    Returns:
        The exit code.
    """
    end = time.monotonic() + 60 * (options.minutes or math.inf)
    names = [name for name in SUITES if name not in APART] if options.suite == "all" else [options.suite]
    if options.device.type == "cuda" and options.suite == "all":
        names.remove("targets")
    opened = []
    for name in names:
        for dtype in (options.dtype or DTYPES) if SUITES[name].dtypes else ("fp32",):
            what = SUITES[name].what
            path = results.path_of(options.out, what, dtype, options.device)
            settings = {"quick": options.quick, "runs": options.runs}
            reopen = options.force, options.resume
            opened.append((name, path, results.begin(path, what, dtype, options.device, *reopen, **settings)))
    sound = complete = True
    for name, path, result in opened:
        print(f"{name}, {result['dtype']}, {result['device']}, {result['threads']} threads", flush=True)
        if results.is_busy(result):
            load, cores = result["load_average_start"][0], result["cores"]
            print(f"note: load {load:.1f} on {cores} cores: the machine is busy, figures are rough", flush=True)
        units = SUITES[name].units(options, DTYPES[result["dtype"]], result["rows"])
        sound &= measure(path, result, units, end, options.archive)
        complete &= "stopped" not in result
        print(f"{os.path.relpath(path)}\n", flush=True)
    if options.suite == "targets":
        print(targets.table(result["rows"]))
        print(json.dumps({"suite": "targets", "rows": result["rows"]}))
    if options.suite in DRAWN and result["rows"]:
        print(os.path.relpath(DRAWN[options.suite](result, path)))
    if not complete:
        print(f"{options.minutes:g} minutes are over; --resume goes on")
    return 1 if not sound else 0 if complete else 3


def measure(
    path: Path,
    result: dict[str, Any],
    units: Iterable[Unit],
    end: float = math.inf,
    archive: Path | None = None,
) -> bool:
    """Measure the units that a result lacks, and write it behind every row; what fails is written, too, and tried again
    by a run that goes on, as is a unit that was cut (its rows are under "open").

    Args:
        end: of the monotonic clock; no unit starts behind it, and the result is then marked as stopped.
        archive: that all results of the folder are packed into.

    Returns:
        Whether nothing failed and nothing was refused.
    """

    def write() -> None:
        results.write(path, result)
        if archive is not None:
            pack(path.parent, archive)

    result["failed"] = []
    result.pop("stopped", None)
    for unit in units:
        if unit.name in result["units"]:
            continue
        if time.monotonic() > end:
            result["stopped"] = True
            break
        try:
            found: list[dict[str, Any]] = []
            result["open"] = {"unit": unit.name, "table": unit.table, "rows": found}
            for row in unit.rows():
                found.append(row)
                write()  # before it is shown: what was seen is safe
                print(f"  {report.line(row, unit.table)}", flush=True)
        except Exception as error:  # whatever a kernel raises: the others go on
            traceback.print_exc()
            result["failed"].append({"what": unit.name, "reason": f"{type(error).__name__}: {error}"[:2000]})
        else:
            table = result.setdefault(unit.table, [])
            table += [row for row in found if not any(row is known for known in table)]
            result["units"] += [unit.name] if unit.name else []
        del result["open"]
        write()
    if not result["failed"]:
        del result["failed"]
    write()
    if path.parent.resolve() == results.FOLDER.resolve():
        report.update()
    tables = (value for value in result.values() if report.are_rows(value))
    return "failed" not in result and not any("refused" in row for table in tables for row in table)
