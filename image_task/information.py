"""Measure how much the output of a block's mixer tells of its input, token by token: the paper's I(X; Y).

python -m image_task.information --model_pth runs/photos/dense --blocks 2 4 --parts mixer forward backward both
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python image_task/information.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import numpy as np
import torch
from matplotlib.figure import Figure

from image_task.data import build_data
from image_task.main import TASK
from rmeeto.cli.chosen import Chosen, choose
from rmeeto.cli.flags import normalise
from rmeeto.cli.parser import OneLineParser, read_path, run_small
from rmeeto.cli.speed_plot import COLOURS, MARKERS
from rmeeto.engine.dist import World
from rmeeto.engine.record import environment
from rmeeto.errors import UserError, shown
from rmeeto.json_file import write_json
from rmeeto.measure.capture import PARTS, capture, mixers
from rmeeto.measure.mutual_information import ESTIMATORS, Settings, mutual_information

PROG = "python -m image_task.information"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code of `run_small`."""
    given = sys.argv[1:] if argv is None else argv
    return run_small(lambda: measure(given), TASK.command.in_flags, "interrupted; nothing was written")


def measure(argv: Sequence[str]) -> dict[str, Any]:
    """Measure what a command line says; write a JSON file and a plot beside it, print a table.

    Returns:
        The content of the file.

    Raises:
        UserError: a flag, model or data that cannot be used.
    """
    options, rest = _parser().parse_known_args([normalise(token) for token in argv])
    if options.output.suffix != ".json" or (options.output.exists() and not options.overwrite):
        raise UserError(f"--output {options.output}: expected a new file that ends in .json, or --overwrite.")
    chosen, notices = choose(TASK, rest)
    for note in notices:
        print(f"note: {shown(note)}", file=sys.stderr)
    blocks = options.blocks or [len(mixers(chosen.model)) // 2]
    settings = [Settings(steps=options.steps, seed=seed) for seed in options.seeds]
    result: dict[str, Any] = {
        "what": "mutual information",
        **environment(World(chosen.device)),
        "command": [*PROG.split(), *argv],
        "model": chosen.name,
        "weights": chosen.weights or "random",
        "data_set": chosen.config.data.data_set,
        "amortised": not options.per_token,
        "steps": options.steps,
        "seeds": options.seeds,
        "blocks": blocks,
        "results": [],
    }
    print(f"{chosen.name}, weights {shown(result['weights'])}; I(X; Y) in nats, mean over tokens and seeds")
    for part in options.parts or PARTS[: 1 if not hasattr(mixers(chosen.model)[0], "scans") else None]:
        batches = _batches(chosen, options.samples)
        x, y, places = capture(chosen.model, batches, blocks, part, options.num_tokens)
        result["samples"], result["places"] = len(x), places
        for estimator in options.estimators:
            found = torch.stack(
                [mutual_information(x, y, estimator, amortised=not options.per_token, settings=s) for s in settings]
            )
            row = {"part": part, "estimator": estimator, "nats": found.tolist()}
            result["results"].append(row)
            means = ", ".join(f"block {b}: {m:.3f}" for b, m in zip(blocks, found.mean((0, 2)).tolist()))
            print(f"  {part:<9} {estimator:<17} {means}", flush=True)
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, result)
        draw(result).savefig(options.output.with_suffix(".png"), dpi=150)
    except OSError as error:
        raise UserError(f"--output {options.output} cannot be written: {error}.") from None
    print(f"written: {shown(options.output)} and {shown(options.output.with_suffix('.png'))}")
    return result


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=PROG,
        usage=f"{PROG} [--model_pth RUN_OR_MODEL_FOLDER] [--flag value ...]",
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"The model and the data are said as to {TASK.command.prog}: --model, --model_pth, --data_set, --r, ...",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--blocks", type=int, nargs="+", help="numbers of blocks, from 0 (default: the middle one)")
    add("--parts", nargs="+", choices=PARTS, help="of a block (default: all that it has)")
    add("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS), help="(default: both)")
    add("--num_tokens", type=int, default=8, help="tokens of a block, evenly spread (default: 8)")
    add("--samples", type=int, default=2048, help="images (default: 2048, or all there are)")
    add("--steps", type=int, default=1000, help="of each network's training (default: 1000, the paper's)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the networks (default: 0 1 2)")
    add("--per_token", action="store_true", help="a network for each token, not one that is told the token")
    add("--output", type=read_path, default=Path("runs/information.json"), help="(default: runs/information.json)")
    add("--overwrite", action="store_true", help="replace files that are there")
    return parser


def _batches(chosen: Chosen, samples: int) -> list[torch.Tensor]:
    """The first images of the evaluation data."""
    size = chosen.model.pretrained_cfg["input_size"][-1]
    data = build_data(chosen.config.data, img_size=size, rank=0, world_size=1, seed=0, train=False)
    kept: list[torch.Tensor] = []
    for images, _ in data.eval_batches():
        kept.append(images[: samples - sum(map(len, kept))])
        if sum(map(len, kept)) >= samples:
            break
    return kept


def draw(result: dict[str, Any]) -> Figure:
    """Nats against the token's place: a column for each block, a row for each estimator, a line for each part.

    Args:
        result: the content of the JSON file. A band is the range over the seeds.
    """
    blocks, rows = result["blocks"], result["results"]
    estimators = list(dict.fromkeys(row["estimator"] for row in rows))
    figure = Figure(figsize=(0.8 + 3.6 * len(blocks), 0.6 + 2.6 * len(estimators)), layout="constrained")
    axes = figure.subplots(len(estimators), len(blocks), squeeze=False, sharey="row")
    for row, ax_row in ((row, axes[estimators.index(row["estimator"])]) for row in rows):
        at = list(dict.fromkeys(r["part"] for r in rows)).index(row["part"])
        nats = np.array(row["nats"])  # (seeds, blocks, tokens)
        for number, ax in enumerate(ax_row):
            places, colour = result["places"][number], COLOURS[at % len(COLOURS)]
            ax.plot(
                places,
                nats[:, number].mean(0),
                color=colour,
                marker=MARKERS[at % len(MARKERS)],
                label=row["part"],
            )
            ax.fill_between(places, nats[:, number].min(0), nats[:, number].max(0), color=colour, alpha=0.2, lw=0)
            ax.set_title(f"block {blocks[number]}: {row['estimator']}", fontsize=9)
            ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("place of the token")
    for ax in axes[:, 0]:
        ax.set_ylabel("I(X; Y) (nats)")
    axes[0, 0].legend(fontsize=8)
    seeds, weights = len(result["seeds"]), result["weights"]
    note = "random weights" if weights == "random" else f"{result['samples']} images"
    figure.suptitle(f"{result['model']}, {note}; bands: {seeds} seed{'s' * (seeds > 1)}", fontsize=9)
    return figure


if __name__ == "__main__":
    sys.exit(main())
