"""The suites: what each measures, as units that are written down one by one."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks import front, models, operators, peers, sizes, training
from benchmarks.results import Unit

TRAINING_BATCH = {"cpu": 4, "cuda": 128}
RECIPE_R = {"tiny": 5}  # of the paper's main table; the larger models' is 11


class Suite(NamedTuple):
    """A suite of the command line.

    Args:
        what: its name in the name of the result file.
        units: from the options, the type and the rows that the file has already.
        dtypes: whether it is measured in each type; else in fp32.
    """

    what: str
    units: Callable[[argparse.Namespace, torch.dtype, list[dict[str, Any]]], Iterable[Unit]]
    dtypes: bool = False


def _setting(options: argparse.Namespace, dtype: torch.dtype) -> models.Setting:
    return models.Setting(
        options.device,
        dtype,
        tuple(options.r),
        tuple(options.backends),
        options.runs,
        0.001 if options.quick else 0.05,
        options.max_pass,
        peers.find(options.upstream, options.device) if "peer" in options.backends else None,
    )


def _operators(options: argparse.Namespace, dtype: torch.dtype, _: list) -> Iterator[Unit]:
    least = 0.001 if options.quick else 0.05
    kernels = peers.find(options.upstream, options.device) if options.upstream or options.quick else None
    for case in operators.cases(options.device, dtype, options.quick, kernels):
        rows = partial(operators.measure, case, options.device, options.runs, least)
        yield Unit(f"{case.what} {case.shape}", rows)


def _models(options: argparse.Namespace, dtype: torch.dtype, _: list) -> Iterator[Unit]:
    setting = _setting(options, dtype)
    for name in options.models:
        for batch in options.batch:
            for mode in options.modes:
                beside = ", beside a peer" * ("peer" in options.backends)
                yield Unit(f"{name}, batch {batch}, {mode}{beside}", partial(models.rows, name, batch, mode, setting))


def _training(options: argparse.Namespace, dtype: torch.dtype, _: list) -> Iterator[Unit]:
    setting, batch = _setting(options, dtype), 2 if options.quick else TRAINING_BATCH[options.device.type]
    for name in options.models:
        r = next((r for size, r in RECIPE_R.items() if size in name), 11)
        yield Unit(name, partial(training.rows, name, batch, r, setting))


def _units_of(module: str, *settings: str) -> Callable[..., Iterator[Unit]]:
    """Those of a module that is imported only then: it needs packages that a machine may lack which measures the rest.

    Args:
        settings: of the options, what its ``units`` takes.
    """

    def units(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
        given = (getattr(options, name) for name in settings)
        return importlib.import_module(f"benchmarks.{module}").units(*given)

    return units


def _scaling(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import scaling

    yield Unit("scaling", partial(scaling.rows, options.quick), "scaling")


def _teacher(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import teacher

    yield Unit("teacher", partial(teacher.rows, options.quick), "teacher")


def _memory(options: argparse.Namespace, dtype: torch.dtype, _: list) -> Iterator[Unit]:
    from benchmarks import memory

    return memory.units(dtype)


SUITES = {
    "targets": Suite("targets", _units_of("targets", "device", "runs", "quick")),
    "operators": Suite("operators", _operators, dtypes=True),
    "models": Suite("models", _models, dtypes=True),
    "training": Suite("training", _training, dtypes=True),
    "loader": Suite("loader", _units_of("loader", "device", "quick")),
    "schedules": Suite("schedule", _units_of("schedules", "device", "runs", "data", "quick")),
    "windows": Suite("window", _units_of("windows", "device", "runs", "quick")),
    "long": Suite("long", _units_of("long", "device", "runs", "quick")),
    "deploy": Suite("deploy", _units_of("deploy", "device", "runs", "quick")),
    "breakdown": Suite("breakdown", _units_of("breakdown", "runs", "quick")),
    "formats": Suite("formats", _units_of("formats", "device", "runs", "data", "quick")),
    "checks": Suite("checks", _units_of("checks", "device", "quick")),
    "memory": Suite("memory", _memory, dtypes=True),
    "ncu": Suite("ncu", _units_of("ncu", "device")),
    "fashion": Suite("fashion", _units_of("fashion", "quick")),
    "front": Suite("front", lambda options, _, rows: front.units(options, rows)),
    "sizes": Suite("sizes", lambda options, _, rows: sizes.units(options, rows)),
    "scaling": Suite("scaling", _scaling),
    "minutes": Suite("minutes", _units_of("minutes", "device", "quick")),
    "teacher": Suite("teacher", _teacher),
}
# Not of `all`: measures nothing; takes long, twice; is the CPU's, three times, and compiles or needs data; whole
# trainings, twice; takes what the loader takes again; measures nothing, and needs Triton; needs a GPU and its profiler;
# trains.
APART = (
    "checks",
    "front",
    "sizes",
    "deploy",
    "breakdown",
    "formats",
    "scaling",
    "teacher",
    "minutes",
    "ncu",
    "fashion",
    "memory",
)
