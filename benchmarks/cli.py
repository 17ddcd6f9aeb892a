"""The command line of the benchmarks: which suites, where their results go, and what is printed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks import loader, models, operators, report, results, schedules, targets
from benchmarks.suites import measure_cases
from image_task.throughput import resolve
from rmeeto.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("cpu", "ops", "models", "training", "loader", "schedule", "all")
FP32_ONLY = ("cpu", "loader", "schedule")
DESCRIPTION = """Measure operators, models, training steps, the loader and schedules. --suite cpu ends with the
ratios that the project holds itself to, as a table and as one line of JSON. Run it where nothing else runs."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = ("eager", "compiled", "graphed")
LOADER_IMAGES, LOADER_EPOCHS = 512, 5
MODELS = ("vim_tiny", "vim_small", "vim_base", "videomamba_tiny")
QUICK = ("vim_nano_patch2_16",)
USED_BY = {
    "dtype": ("ops", "models", "training"),
    "models": ("models", "training"),
    "backends": ("models", "training"),
    "batch": ("models",),
    "r": ("models",),
    "modes": ("models",),
    "max_pass": ("models",),
}
TRAINING_BATCH = {"cpu": 4, "cuda": 128}
RECIPE_R = {"tiny": 5}  # of the paper's main table; the larger models' is 11


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suites of a command line.

    Returns:
        The exit code: 0, 1 if anything was refused because it failed its parity test, 2 for a user error, 130 after
        Ctrl-C.
    """
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        return run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished suites are written", file=sys.stderr)
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
            raise UserError(
                f"--{name} has no effect on --suite {options.suite}; it belongs to {', '.join(suites)}."
            )
    if options.runs < 5:
        raise UserError(f"--runs is {options.runs}; expected 5 or more, for a median and its spread.")
    on_gpu = torch.cuda.is_available() and options.device != "cpu" and options.suite != "cpu"
    if options.device == "cuda" and not on_gpu:
        raise UserError(
            "--device cuda: torch sees no GPU (python -m rmeeto.doctor says why), or the suite is the CPU's; use cpu."
        )
    if options.modes and "graphed" in options.modes and not on_gpu:
        raise UserError("--modes graphed needs a GPU, and this runs on cpu.")
    options.device = torch.device("cuda" if on_gpu else "cpu")
    options.modes = options.modes or (list(MODES) if on_gpu else ["eager", "compiled"])
    options.models = [resolve(name) for name in options.models or (QUICK if options.quick else MODELS)]
    options.batch = options.batch or ([1, 2] if options.quick else [1, 8, 128])
    options.r = [0, 5, 11] if options.r is None else options.r
    options.backends = options.backends or ["auto"]
    options.max_pass = 5.0 if options.max_pass is None else options.max_pass
    options.out = options.out or (ROOT / "runs" / "benchmarks" if options.quick else results.FOLDER)
    return options


def _flags() -> argparse.ArgumentParser:
    parser = _Parser(prog="benchmarks/run.py", description=DESCRIPTION, allow_abbrev=False)
    add, several = parser.add_argument, {"nargs": "+", "default": None}
    add("--suite", choices=SUITES, default="cpu", help="cpu: the CPU's targets; all: every suite")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dtype", choices=DTYPES, **several, help="of ops, models and training; default: both")
    add("--models", **several, help=f"default: {' '.join(MODELS)}")
    add("--batch", type=int, **several, help="of the models; default: 1 8 128")
    add("--r", type=int, **several, help="of the models; default: 0 5 11")
    add("--modes", choices=MODES, **several, help="of the models; default: all that the device has")
    add("--backends", **several, help="of models and training: auto torch upstream; default: auto")
    add(
        "--max_pass",
        type=float,
        default=None,
        help="seconds; batches that take the models longer are left out",
    )
    add("--runs", type=int, default=11, help="timed runs of each, 5 or more")
    add("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing of use")
    add("--out", type=Path, default=None, help="folder; default: benchmarks/results (quick: runs/benchmarks)")
    add("--force", action="store_true", help="replace results that exist")
    return parser


def run(options: argparse.Namespace) -> int:
    """Measure, print and write each suite; nothing is measured before every result's place is free."""
    plan = _plan(options)
    paths = [
        results.path_of(options.out, WHAT.get(suite, suite), dtype, options.device) for suite, dtype in plan
    ]
    for path in paths:
        results.check_free(path, options.force)
    refused = False
    for (suite, dtype), path in zip(plan, paths):
        result = results.begin(
            WHAT.get(suite, suite), dtype, options.device, quick=options.quick, runs=options.runs
        )
        print(f"{suite}, {dtype}, {result['device']}, {result['threads']} threads", flush=True)
        if results.is_busy(result):
            load, cores = result["load_average_start"][0], result["cores"]
            print(
                f"note: load {load:.1f} on {cores} cores: the machine is busy, figures are rough", flush=True
            )
        result["rows"] = []
        for row in MEASURES[suite](options, DTYPES[dtype]):
            result["rows"].append(row)
            print(f"  {report.line(row)}", flush=True)
        results.write(path, result)
        refused |= any("refused" in row for row in result["rows"])
        print(f"{os.path.relpath(path)}\n", flush=True)
    if plan == [("cpu", "fp32")]:
        print(targets.table(result["rows"]))
        print(json.dumps({"suite": "cpu", "rows": result["rows"]}))
    return 1 if refused else 0


def _plan(options: argparse.Namespace) -> list[tuple[str, str]]:
    """(suite, dtype) in order."""
    suites = [options.suite]
    if options.suite == "all":
        suites = ["cpu"] * (options.device.type == "cpu") + list(SUITES[1:-1])
    both = options.dtype or list(DTYPES)
    return [(suite, dtype) for suite in suites for dtype in (["fp32"] if suite in FP32_ONLY else both)]


def _targets(options: argparse.Namespace, _: torch.dtype) -> Iterator[dict[str, Any]]:
    return targets.measure(options.device, options.runs, options.quick)


def _operators(options: argparse.Namespace, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    cases = operators.cases(options.device, dtype, options.quick)
    return measure_cases(cases, options.device, options.runs, 0.001 if options.quick else 0.05)


def _models(options: argparse.Namespace, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    how = (options.batch, options.r, options.modes, options.backends, options.runs, options.max_pass)
    for name in options.models:
        yield from models.forward_rows(name, options.device, dtype, *how)


def _training(options: argparse.Namespace, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    batch = 2 if options.quick else TRAINING_BATCH[options.device.type]
    for name in options.models:
        r = next((r for size, r in RECIPE_R.items() if size in name), 11)
        yield from models.training_rows(name, options.device, dtype, batch, r, options.backends, options.runs)


def _loader(options: argparse.Namespace, _: torch.dtype) -> Iterator[dict[str, Any]]:
    if options.quick:
        return loader.loader_rows(8, 2, img_size=32, size=(64, 48))
    return loader.loader_rows(LOADER_IMAGES, LOADER_EPOCHS)


def _schedule(options: argparse.Namespace, _: torch.dtype) -> Iterator[dict[str, Any]]:
    return schedules.measure(options.device, options.runs, options.quick)


WHAT = {"cpu": "targets"}  # the name in the result's file
MEASURES: dict[str, Callable[[argparse.Namespace, torch.dtype], Iterator[dict[str, Any]]]] = {
    "cpu": _targets,
    "ops": _operators,
    "models": _models,
    "training": _training,
    "loader": _loader,
    "schedule": _schedule,
}
