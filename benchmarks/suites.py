"""The suites: what each measures, as units that are written down one by one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks import breakdown, front, models, operators, peers, sizes, targets, training
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


def _targets(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    return targets.units(options.device, options.runs, options.quick)


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
                yield Unit(
                    f"{name}, batch {batch}, {mode}{beside}", partial(models.rows, name, batch, mode, setting)
                )


def _training(options: argparse.Namespace, dtype: torch.dtype, _: list) -> Iterator[Unit]:
    setting, batch = _setting(options, dtype), 2 if options.quick else TRAINING_BATCH[options.device.type]
    for name in options.models:
        r = next((r for size, r in RECIPE_R.items() if size in name), 11)
        yield Unit(name, partial(training.rows, name, batch, r, setting))


# What follows needs packages that a machine may lack which measures the rest.
def _loader(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import loader

    return loader.units(options.device, options.quick)


def _schedules(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import schedules

    return schedules.units(options.device, options.runs, options.quick)


def _windows(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import windows

    return windows.units(options.device, options.runs, options.quick)


def _deploy(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import deploy

    return deploy.units(options.device, options.runs, options.quick)


def _breakdown(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    return breakdown.units(options.runs, options.quick)


def _formats(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import formats

    return formats.units(options.device, options.runs, options.data, options.quick)


def _long(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import long

    return long.units(options.device, options.runs, options.quick)


def _checks(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import checks

    return checks.units(options.device, options.quick)


def _front(options: argparse.Namespace, _: torch.dtype, rows: list[dict[str, Any]]) -> Iterator[Unit]:
    return front.units(options, rows)


def _sizes(options: argparse.Namespace, _: torch.dtype, rows: list[dict[str, Any]]) -> Iterator[Unit]:
    return sizes.units(options, rows)


def _scaling(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import scaling

    yield Unit("scaling", partial(scaling.rows, options.quick), "scaling")


def _minutes(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import minutes

    return minutes.units(options.device, options.quick)


def _teacher(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import teacher

    yield Unit("teacher", partial(teacher.rows, options.quick), "teacher")


def _memory(options: argparse.Namespace, dtype: torch.dtype, _: list) -> Iterator[Unit]:
    from benchmarks import memory

    return memory.units(dtype)


def _ncu(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import ncu

    return ncu.units(options.device)


def _fashion(options: argparse.Namespace, *_: Any) -> Iterator[Unit]:
    from benchmarks import fashion

    return fashion.units(options.quick)


SUITES = {
    "targets": Suite("targets", _targets),
    "operators": Suite("operators", _operators, dtypes=True),
    "models": Suite("models", _models, dtypes=True),
    "training": Suite("training", _training, dtypes=True),
    "loader": Suite("loader", _loader),
    "schedules": Suite("schedule", _schedules),
    "windows": Suite("window", _windows),
    "long": Suite("long", _long),
    "deploy": Suite("deploy", _deploy),
    "breakdown": Suite("breakdown", _breakdown),
    "formats": Suite("formats", _formats),
    "checks": Suite("checks", _checks),
    "memory": Suite("memory", _memory, dtypes=True),
    "ncu": Suite("ncu", _ncu),
    "fashion": Suite("fashion", _fashion),
    "front": Suite("front", _front),
    "sizes": Suite("sizes", _sizes),
    "scaling": Suite("scaling", _scaling),
    "minutes": Suite("minutes", _minutes),
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
