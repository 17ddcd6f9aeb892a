"""Compare runs: `python -m rmeeto.record RUN... [--plot FILE]` shows a table, and draws their curves."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rmeeto.cli.parser import Parser, read_path, run_small
from rmeeto.engine.progress import clock
from rmeeto.engine.record import differences
from rmeeto.errors import UserError, shown
from rmeeto.json_file import open_regular, parse_json, read_json

COLUMNS = ("run", "epoch", "top-1", "best", "loss", "tokens", "images/s", "waits", "time", "left")
APART = ("run.output_dir", "run.name", "run.resume")  # that every two runs differ in
MANY = 6  # differences that are named


@dataclass(frozen=True)
class Run:
    """What a run folder says: its settings, and the lines of its log by event."""

    path: Path
    config: dict[str, Any]
    steps: list[dict[str, Any]]
    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Run:
        """A run that is finished or still goes on.

        Raises:
            UserError: no run folder.
        """
        if not (path / "config.json").exists():
            raise UserError(f"{path} holds no config.json, so it is no run folder; give such as log/<run>.")
        lines = list(_lines(path / "log.jsonl"))
        events = {
            event: [line for line in lines if line["event"] == event] for event in ("step", "train", "eval", "test")
        }
        evals = [line for line in events["eval"] + events["test"] if line.get("weights", "model") == "model"]
        return cls(path, read_json(path / "config.json"), events["step"], events["train"], evals)

    def cells(self) -> list[str]:
        """Its row of the table: accuracy in percent, images per second of training, the share of time without data."""
        last = self.evals[-1] if self.evals else {}
        process = [line.get("process", {}) for line in self.train]
        seconds = sum(_number(part, "seconds") for part in process)
        waited = sum(_number(part, "wait_s") for part in process)
        rate = sum(_number(part, "images_per_s") * _number(part, "seconds") for part in process)
        epochs = self.config.get("optim", {}).get("epochs", "?")
        step = self.steps[-1] if self.steps else {}
        left = _number(step.get("process"), "left_s")
        ended = (self.path / "result.json").exists() or not self.steps
        return [
            self.path.name,
            f"{self.train[-1]['epoch']}/{epochs}" if self.train else "-",
            f"{last['top1']:.2f}" if "top1" in last else "-",
            f"{max(line['top1'] for line in self.evals):.2f}" if self.evals else "-",
            f"{last['loss']:.4f}" if "loss" in last else "-",
            f"{_number(step, 'tokens'):.4g}" if "tokens" in step else "-",
            f"{rate / seconds:.0f}" if seconds else "-",
            f"{waited / seconds:.0%}" if seconds else "-",
            clock(seconds) if seconds else "-",
            "-" if ended else clock(left),
        ]


def _lines(path: Path) -> Any:
    """The whole lines of a log that say an event, an epoch and numbers; a run may be writing the last one."""
    if not path.exists():
        return
    with open_regular(path) as file:
        for text in file:
            try:
                line = parse_json(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("epoch"), int) and _is_plain(line):
                yield line


def _is_plain(line: Mapping[str, Any]) -> bool:
    shown = ("step", "top1", "loss", "lr", "grad_norm", "tokens")
    numbers = all(isinstance(line[name], int | float) for name in shown if name in line)
    return isinstance(line.get("event"), str) and numbers and ("top1" in line or line["event"] in ("step", "train"))


def _number(values: Any, name: str) -> float:
    found = values.get(name, 0.0) if isinstance(values, dict) else 0.0
    return float(found) if isinstance(found, int | float) else 0.0


def table(runs: Sequence[Run]) -> list[str]:
    """One line a run under a head; then what settings the others have otherwise than the first."""
    rows = [list(COLUMNS), *(run.cells() for run in runs)]
    widths = [max(len(shown(row[column])) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(
            [
                f"{shown(row[0]):<{widths[0]}}",
                *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:])),
            ]
        )
        for row in rows
    ]
    first, *others = runs
    for run in others:
        found = differences(first.config, run.config, APART, "{name} {old} to {new}")
        named = "; ".join(found[:MANY])
        more = f" and {len(found) - MANY} more" if len(found) > MANY else ""
        lines.append(f"{run.path.name}, from {first.path.name}: {named or 'the same settings'}{more}")
    return lines


def draw(runs: Sequence[Run], path: Path) -> None:
    """Accuracy and loss by epoch, rate and gradient norm by step, a line a run.

    Raises:
        UserError: the file cannot be written, or its ending is none of matplotlib's.
    """
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    (left, right), below = figure.subplots(2, 2)
    for run in runs:
        curves = [
            (left, run.evals, "epoch", "top1"),
            (right, run.train, "epoch", "loss"),
            (below[0], run.steps, "step", "lr"),
            (below[1], run.steps, "step", "grad_norm"),
        ]
        for axes, lines, over, name in curves:
            points = [(line[over], line[name]) for line in lines if over in line and name in line]
            axes.plot([x for x, _ in points], [y for _, y in points], ".-", label=run.path.name)
    titles = ("top-1 in evaluation, %", "loss in training", "learning rate", "norm of the gradient")
    for axes, title in zip((left, right, *below), titles):
        axes.set(xlabel="epoch" if axes in (left, right) else "step", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be drawn to ({error}); give another --plot, such as runs.png.") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the runs of a command line; the exit code."""
    parser = Parser(prog="python -m rmeeto.record", description=__doc__)
    parser.add_argument("runs", nargs="+", type=read_path, metavar="RUN", help="a run folder, such as log/first")
    parser.add_argument("--plot", type=read_path, metavar="FILE", help="draw their curves, such as runs.png")
    options = parser.parse_args(argv)

    def work() -> None:
        runs = [Run.read(path) for path in options.runs]
        print(*map(shown, table(runs)), sep="\n")
        if options.plot:
            draw(runs, options.plot)
            print(shown(f"drawn: {options.plot}"))

    return run_small(work)


if __name__ == "__main__":
    sys.exit(main())
