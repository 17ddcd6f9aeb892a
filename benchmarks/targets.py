"""The CPU's targets: each a ratio of two things timed in turn, or of their memory, beside what it should reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import models, operators, timing, training
from benchmarks.operators import BOTH, FORWARD
from benchmarks.results import Unit
from rmeeto.ops.selective_scan import SCAN
from rmeeto.ops.token_merge import MERGE

# (target, moonshot): times faster than the eager loop, than the released arithmetic, than dense
SCAN_TARGETS = {FORWARD: (6.0, 9.0), BOTH: (4.5, 8.0)}
FORWARD_TARGET, MERGE_TARGET = (4.0, 6.0), (3.0, 6.0)
MERGED_TARGETS = {5: (1.12, 1.15), 11: (1.36, 1.42)}
SWEEP = (5, 7, 9, 11, 16)  # r at which merging must never be slower than dense
MODEL, MODEL_BATCH, TRAINING_BATCH, TRAINING_R = "vim_tiny_patch16_224", 8, 4, 5
QUICK_MODEL = "vim_nano_patch2_16"
COLUMNS = {"": -37, "ratio": 7, "IQR": 7, "theory": 7, "target": 8, "moon": 6, "met": 8}


def units(device: torch.device, runs: int, quick: bool = False) -> Iterator[Unit]:
    """Rows of the targets, every one with `ratio`, `target`, `moonshot` and `met`."""
    least = 0.001 if quick else 0.05
    scans = operators.QUICK_SCANS if quick else operators.SCANS
    shape, r = (operators.QUICK_TOKENS[0], operators.QUICK_R) if quick else (operators.TOKENS[0], operators.R)

    def scan(shape: Sequence[int]) -> Iterator[dict[str, Any]]:
        rows = list(operators.measure(operators.scan(shape, device, torch.float32), device, runs, least))
        for kind, target in SCAN_TARGETS.items():
            name = f"scan, {kind} {_compact(shape)}"
            yield _faster(name, rows, "torch", SCAN.chosen(device.type), target, kind)

    def merging() -> Iterator[dict[str, Any]]:
        rows = list(operators.measure(operators.merging(shape, r, device, torch.float32), device, runs, least))
        ours, name = MERGE.chosen(device.type), f"merge {_compact(shape)}, r = {r}"
        yield _faster(name, rows, operators.RELEASED, ours, MERGE_TARGET, FORWARD)

    for each in scans:
        yield Unit(f"scan {_compact(each)}", partial(scan, each))
    yield Unit("merge", merging)
    model, setting = QUICK_MODEL if quick else MODEL, models.Setting(device, runs=runs, min_seconds=least)
    yield Unit("eager loop", partial(_over_eager, model, setting))
    yield Unit("merged", partial(_over_dense, model, setting))
    yield Unit("by samples", partial(_by_samples, model, setting))
    yield Unit("training", partial(_training_memory, model, setting))


def _over_eager(model: str, setting: models.Setting) -> Iterator[dict[str, Any]]:
    both = dataclasses.replace(setting, backends=("auto", "torch"))
    rows = [{**row, "way": row["backend"]} for row in models.rows(model, MODEL_BATCH, "eager", both)]
    yield _faster(f"{_short(model)} forward over eager loop", rows, "torch", "auto", FORWARD_TARGET)


def _over_dense(model: str, setting: models.Setting) -> Iterator[dict[str, Any]]:
    swept = dataclasses.replace(setting, r=(0, *SWEEP))
    rows = [{**row, "way": row["r"]} for row in models.rows(model, MODEL_BATCH, "eager", swept)]
    yield from _merged(f"{_short(model)} merged over dense", rows)
    each = [_faster("", rows, 0, r, (1.0, None)) for r in SWEEP]
    worst = min(each, key=lambda row: row["ratio"] or 0.0)
    yield worst | {"row": f"slowest of r = {', '.join(map(str, SWEEP))}"}


def _by_samples(model: str, setting: models.Setting) -> Iterator[dict[str, Any]]:
    swept = dataclasses.replace(setting, r=(0, *MERGED_TARGETS))
    rows = [{**row, "way": row["r"]} for row in models.rows(model, MODEL_BATCH, "by samples", swept)]
    yield from _merged("merged over dense by samples", rows)


def _merged(name: str, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for r, target in MERGED_TARGETS.items():
        found = _faster(f"{name}, r = {r}", rows, 0, r, target)
        theory = [row["theory"] for row in rows if row["way"] == r and "theory" in row]
        yield found | {"theory": theory[0] if theory else None}


def _training_memory(model: str, setting: models.Setting) -> Iterator[dict[str, Any]]:
    both = dataclasses.replace(setting, backends=("auto", "torch"), runs=min(setting.runs, 5))
    rows = {row["backend"]: row for row in training.rows(model, TRAINING_BATCH, TRAINING_R, both)}
    ours, eager = (rows[name].get("memory_bytes") for name in ("auto", "torch"))
    known = ours is not None and eager
    yield {
        "row": f"{_short(model)} training memory / eager",
        "ratio": ours / eager if known else None,
        "spread": None,
        "target": 1.0,
        "moonshot": None,
        "met": bool(known and ours <= eager),
        "at_most": True,
        "bytes": [ours, eager],
        **_reasons(rows.values()),
    }


def _faster(
    name: str,
    rows: Sequence[dict[str, Any]],
    baseline: Any,
    ours: Any,
    target: tuple[float, float | None],
    kind: str | None = None,
) -> dict[str, Any]:
    """How many times faster one way is than another; no ratio where one of them was refused."""
    timed = {row["way"]: row["runs_ms"] for row in rows if row.get("pass") == kind and "runs_ms" in row}
    result: dict[str, Any] = {"row": name, "ratio": None, "spread": None, "target": target[0]}
    result |= {"moonshot": target[1], "met": False, "at_most": False, **_reasons(rows)}
    if baseline in timed and ours in timed:
        result["ratio"], result["spread"] = timing.ratio(timed[baseline], timed[ours])
        result["met"] = result["ratio"] >= target[0]
        result["ms"] = [float(torch.tensor(timed[way]).median()) for way in (baseline, ours)]
    return result


def _reasons(rows: Any) -> dict[str, Any]:
    found = [row["refused"] for row in rows if "refused" in row]
    return {"refused": found} if found else {}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in at most 80 columns."""
    lines = ["".join(f"{name:{_width(width)}}" for name, width in COLUMNS.items())]
    for row in rows:
        sign = "<= " if row["at_most"] else ""
        cells = [
            row["row"],
            _number(row["ratio"], 2),
            _number(row["spread"], 2),
            _number(row.get("theory"), 3),
        ]
        cells += [sign + _number(row["target"], 2), _number(row["moonshot"], 2)]
        cells.append("refused" if "refused" in row else "met" if row["met"] else "not met")
        lines.append("".join(f"{cell:{_width(width)}}" for cell, width in zip(cells, COLUMNS.values())))
    return "\n".join(lines)


def _width(width: int) -> str:
    return f"<{-width}" if width < 0 else f">{width}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _compact(shape: Sequence[int]) -> str:
    return ",".join(map(str, shape))


def _short(model: str) -> str:
    return {MODEL: "Vim-Ti", QUICK_MODEL: "Vim nano"}.get(model, model)
