"""Wall time from what is reported and assumed; the tables of docs/scaling.md and docs/machines.md (`update`)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rmeeto.measure.scaling import Link, Machines, Prediction, Rates, Work, predict

PAGES = [Path(__file__).resolve().parents[1] / "docs" / f"{name}.md" for name in ("scaling", "machines")]
RESULTS = Path(__file__).resolve().parent / "results"
NONE_YET = "Not yet measured."

MACHINES, EPOCHS = (1, 2, 4), 3
SAMPLES, EVALUATED = 1_281_167, 50_000  # of ImageNet-1K
# Reported by the paper: minutes of 3 epochs on 8, 16 and 32 H100; r of its main table; parameters.
REPORTED = {
    "vim_tiny_patch16_224": ((16.2, 8.1, 4.2), 5, 7.1e6),
    "vim_small_patch16_224": ((25.2, 12.9, 6.8), 11, 25.8e6),
    "vim_base_patch16_224": ((57.6, 30.6, 16.9), 11, 97.9e6),
}
GPUS, BATCH, ACCUMULATION = 8, 128, 2  # of a machine, of a micro-batch, of a step: the recipes'
# Assumed, not measured: what NCCL reaches within eight H100 of a machine, and between machines of eight 400 Gb/s cards.
NVLINK, NETWORK = Link(300e9, 10e-6), Link(200e9, 30e-6)
OVERLAP = 0.8  # assumed: the share of the backward pass that hides an all-reduce on GPUs


def h100s(count: int) -> Machines:
    """Machines of eight H100 as they are assumed to be."""
    return Machines(count, GPUS, cores=128, within=NVLINK, between=NETWORK, workers=10, overlap=OVERLAP)


def reported_rates(name: str) -> Rates:
    """What a process does on one machine of eight, where all the reported time is steps."""
    minutes, _, _ = REPORTED[name]
    steps = SAMPLES // (GPUS * ACCUMULATION * BATCH)
    micro_batch = 60 * minutes[0] / (EPOCHS * steps * ACCUMULATION)
    return Rates(BATCH, micro_batch, backward_s=micro_batch / 2)


def work(name: str, accumulation: int = ACCUMULATION) -> Work:
    """Three epochs of ImageNet-1K."""
    return Work(SAMPLES, EVALUATED, EPOCHS, 4 * REPORTED[name][2], accumulation)


MANY, LARGE_STEP = (1, 4, 16, 100, 1000), 16_384  # machines; samples of a step that stays the same
IMAGENET_21K = 14_197_122  # images
FAILS_EVERY, SAVED_EVERY = (
    100,
    2,
)  # assumed: days between two failures of a machine; minutes between two checkpoints


def short(name: str) -> str:
    """Vim-Ti, -S, -B."""
    return {"tiny": "Vim-Ti", "small": "Vim-S", "base": "Vim-B"}[name.split("_")[1]]


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Of Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def against_the_paper() -> str:
    """What follows for 16 and 32 GPUs from the figure for 8, beside what is reported; and what does not shrink."""
    rows = []
    for name, (minutes, _, _) in REPORTED.items():
        predicted = [predict(reported_rates(name), work(name), h100s(count)).total_s / 60 for count in MACHINES]
        cells = [f"{ours:.1f} ({100 * (ours / theirs - 1):+.0f} %)" for ours, theirs in zip(predicted[1:], minutes[1:])]
        fixed = 2 * minutes[1] - minutes[0]  # minutes = share / machines + fixed, from one and two machines
        with_fixed = (minutes[0] - fixed) / 4 + fixed
        error = 100 * (with_fixed / minutes[2] - 1)
        rows.append([short(name), *minutes, *cells, f"{fixed:.1f}", f"{with_fixed:.1f} ({error:+.0f} %)"])
    head = ["3 epochs, minutes", "8 GPUs, reported", "16", "32", "16, predicted", "32, predicted"]
    return table([*head, "part that does not shrink", "32, predicted with it"], rows)


def kept_step(name: str, count: int, samples: int) -> tuple[Prediction, float]:
    """An epoch in steps of `LARGE_STEP` samples, however many machines; and the samples of a GPU in a step."""
    rates, machines = reported_rates(name), h100s(count)
    share = LARGE_STEP / machines.size
    parts = max(1, round(share / BATCH))  # micro-batches of at most about the recipe's size
    batch = share / parts
    scaled = dataclasses.replace(
        rates,
        batch=1,
        compute_s=rates.compute_s * batch / rates.batch,
        backward_s=rates.backward_s * batch / rates.batch,
    )
    # A micro-batch counts as one sample: steps are what the epoch has of them.
    steps = samples // LARGE_STEP
    plan = Work(steps * machines.size * parts, 0, EPOCHS, 4 * REPORTED[name][2], parts)
    return predict(scaled, plan, machines), share


def many_machines(samples: int) -> str:
    """Machines by the hundred, at steps of one size."""
    rows = []
    for name in REPORTED:
        for count in MANY:
            found, share = kept_step(name, count, samples)
            waits = found.reduce_s / found.step_s
            rows.append(
                [
                    short(name),
                    count,
                    f"{share:.1f}",
                    f"{1e3 * found.compute_s:.0f}",
                    f"{1e3 * found.reduce_s:.1f}",
                ]
                + [f"{waits:.0%}", f"{found.total_s / 60:.2f}"]
            )
    head = ["model", "machines", "images of a GPU in a step", "computing, ms", "waiting for gradients, ms"]
    return table([*head, "share", "3 epochs, minutes"], rows)


def recipes_step() -> str:
    """What the recipe's step, which grows with the machines, leaves of an epoch."""
    rows = []
    for count in MANY:
        step = count * GPUS * ACCUMULATION * BATCH
        rows.append([count, f"{step:,}", SAMPLES // step, IMAGENET_21K // step])
    return table(["machines", "images a step", "steps an epoch, ImageNet-1K", "ImageNet-21k"], rows)


def failures() -> str:
    """How often something fails, and what that costs."""
    rows = []
    for count in MANY:
        hours = 24 * FAILS_EVERY / count
        lost = (SAVED_EVERY / 2 + 1) / 60 / hours  # half of what is between two checkpoints, and a minute to start
        rows.append([count, f"{hours:,.1f}", f"{lost:.2%}"])
    return table(["machines", "hours between two failures", "time lost"], rows)


def recorded(what: str, columns: dict[str, str]) -> str:
    """Rows of a table of the result files of a suite."""
    files = sorted(RESULTS.glob(f"{what}-*.json"))
    parts = []
    for file in files:
        result = json.loads(file.read_text())
        found = [[_cell(row.get(name)) for name in columns] for row in result.get(what, [])]
        load = result["load_average_start"][0]
        where = f"{result['device']}, {result['cores']} cores, load {load:.1f}, {result['date'][:10]}, `{file.name}`:"
        parts.append(f"{where}\n\n{table(columns.values(), found)}")
    return "\n\n".join(parts) or NONE_YET


def _cell(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def page(text: str) -> str:
    """A page with its tables as they have to be."""
    errors = {
        "processes": "processes",
        "measured_s": "measured, s",
        "predicted_s": "predicted, s",
        "error": "error",
    }
    minutes = {"model": "model", "minutes": "3 epochs, minutes", "machine": "machine"}
    answers = {
        "answers": "the teacher's answers are",
        "images_per_s": "images/s",
        "time_saved": "time saved",
        "largest_difference_of_a_loss": "largest difference of a loss",
        "bytes_an_image": "bytes an image",
        "MB_an_epoch_of_60000": "MB an epoch of 60,000",
    }
    tables = {
        "teacher": recorded("teacher", answers),
        "paper": against_the_paper(),
        "checked": recorded("scaling", errors),
        "minutes": recorded("minutes", minutes | {str(count): str(count) for count in MACHINES}),
        "recipe": recipes_step(),
        "imagenet-1k": many_machines(SAMPLES),
        "imagenet-21k": many_machines(IMAGENET_21K),
        "failures": failures(),
    }
    for name, made in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        if found:
            text = before + start + made + "\n" + end + rest.partition(end)[2]
    return text


def update() -> None:
    """Write the pages."""
    for file in PAGES:
        file.write_text(page(file.read_text()))


if __name__ == "__main__":
    update()
