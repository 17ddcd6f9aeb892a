"""Rows that grow by a run a round: what slows the machine slows all, and a command that goes on measures the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.results import Unit
from rmeeto.measure.speed import seconds_of

Case = dict[str, Any]


def units(
    cases: Iterable[Case],
    rows: list[dict[str, Any]],
    runs: int,
    way: Callable[[Case], Callable[[], Any]],
    device: torch.device,
    min_seconds: float,
) -> Iterator[Unit]:
    """The runs that the rows lack, round by round; each unit is one run of one row.

    Args:
        cases: what each row measures; plain values, which the row holds beside its runs.
        rows: of the result, so far.
        runs: of each row.
        way: from a case to what is timed, made once if it is cached there.
        device: where it runs.
        min_seconds: of a run; short passes are repeated.
    """
    found = []
    for case in cases:
        row = next((row for row in rows if row.items() >= case.items()), None)
        found.append((case, {**case, "runs_ms": []} if row is None else row))
    for i in range(runs):
        start = i % len(found)  # nobody is always timed behind the same other
        for case, row in found[start:] + found[:start]:
            if len(row["runs_ms"]) <= i:
                yield Unit(None, partial(_run, row, partial(way, case), device, min_seconds))


def _run(
    row: dict[str, Any], way: Callable[[], Callable[[], Any]], device: torch.device, min_seconds: float
) -> Iterator[dict[str, Any]]:
    """The row with another run: warm, and as many passes as last so long."""
    call = way()
    with torch.inference_mode():
        call()
        one = min(row["runs_ms"]) / 1e3 if row["runs_ms"] else seconds_of(device, call)
        calls = max(1, math.ceil(min_seconds / one))
        row["runs_ms"].append(round(1e3 * seconds_of(device, call, calls), 4))
    first, median, third = np.percentile(row["runs_ms"], (25, 50, 75)).tolist()
    row |= {"median_ms": median, "spread_ms": third - first, "quartiles_ms": [first, third]}
    row |= {"images_per_s": 1e3 * row["batch"] / median}
    yield row
