"""Measure how much the output of a block's mixer tells of its input, token by token: the paper's I(X; Y).

python -m image_task.information --model_pth runs/photos/dense --blocks 2 4 --parts mixer forward backward both
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
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

from image_task.data import ImageData, build_data
from image_task.main import TASK
from rmeeto.cli.chosen import Chosen, choose
from rmeeto.cli.flags import normalise
from rmeeto.cli.outputs import check_output, unwritable
from rmeeto.cli.parser import OneLineParser, read_path, run_small
from rmeeto.cli.speed_plot import COLOURS, MARKERS
from rmeeto.engine.dist import World
from rmeeto.engine.progress import LINE_EVERY, Progress
from rmeeto.engine.record import environment
from rmeeto.errors import UserError, shown
from rmeeto.json_file import write_json, write_whole
from rmeeto.measure.capture import PARTS, capture, mixers
from rmeeto.measure.mutual_information import ESTIMATORS, Settings, fewest_samples, mutual_information

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
    settings = _settings(options)
    picture = _check_files(options)
    chosen, notices = choose(TASK, rest)
    for note in notices:
        print(f"note: {shown(note)}", file=sys.stderr)
    blocks, parts = _of_model(chosen, options)
    size, config = chosen.model.pretrained_cfg["input_size"][-1], chosen.config.data
    data = build_data(config, img_size=size, rank=0, world_size=1, seed=0, train=False)
    there = min(data.num_eval, (config.max_eval_batches or data.num_eval) * config.batch_size)
    count = min(options.samples, there)
    origin = f"{config.data_set} in {config.data_path}" if config.data_path else config.data_set
    _check_samples(count, origin, settings[0])
    result: dict[str, Any] = {
        "what": "mutual information",
        **environment(World(chosen.device)),
        "command": [*PROG.split(), *argv],
        "model": chosen.name,
        "weights": chosen.weights or "random",
        "data_set": config.data_set,
        "amortised": not options.per_token,
        "steps": options.steps,
        "seeds": options.seeds,
        "blocks": blocks,
        "results": [],
    }
    print(
        f"{chosen.name}, weights {shown(result['weights'])}, blocks {' '.join(map(str, blocks))}; {count} of {there} "
        f"images of {shown(origin)}; I(X; Y) in nats, mean over tokens and seeds",
        flush=True,
    )
    for part in parts:
        x, y, places = capture(chosen.model, _batches(data, count, part), blocks, part, options.num_tokens)
        _check_samples(len(x), f"{origin}, as far as it can be read", settings[0])
        result["samples"], result["places"] = len(x), places
        networks = x.shape[1:-1].numel() if options.per_token else 1
        for estimator in options.estimators:
            rounds = len(settings) * networks * options.steps
            with Progress(f"{part} {estimator}: step", rounds, line_every=LINE_EVERY) as progress:
                of_seeds = [
                    mutual_information(
                        x, y, estimator, amortised=not options.per_token, settings=each, on_step=progress.update
                    )
                    for each in settings
                ]
            found = torch.stack(of_seeds)
            row = {"part": part, "estimator": estimator, "nats": found.tolist()}
            result["results"].append(row)
            means = ", ".join(f"block {b}: {m:.3f}" for b, m in zip(blocks, found.mean((0, 2)).tolist()))
            print(f"  {part:<9} {estimator:<17} {means}", flush=True)
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, result)
        write_whole(picture, lambda file: draw(result).savefig(file, format="png", dpi=150))
    except OSError as error:
        raise UserError(unwritable(options.output, "--output", error)) from None
    print(f"written: {shown(options.output)} and {shown(picture)}")
    return result


def _settings(options: argparse.Namespace) -> list[Settings]:
    """How each seed's networks are trained.

    Raises:
        UserError: a flag whose value cannot be, said as the command line says it.
    """
    for name in ("num_tokens", "samples", "steps"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}; expected 1 or more.")
    for name in ("blocks", "parts", "estimators", "seeds"):
        given = getattr(options, name) or []
        if len(set(given)) < len(given):
            raise UserError(f"--{name} {' '.join(map(str, given))} names one of them twice; give each once.")
    if not all(0 <= seed < 2**63 for seed in options.seeds):
        raise UserError(f"--seeds {' '.join(map(str, options.seeds))}; expected whole numbers from 0 to 2^63 - 1.")
    settings = [Settings(steps=options.steps, seed=seed) for seed in options.seeds]
    _check_samples(options.samples, f"--samples {options.samples}", settings[0])
    return settings


def _check_samples(count: int, whose: str, settings: Settings) -> None:
    least = fewest_samples(settings)
    if count < least:
        raise UserError(
            f"{whose}: {count} image{'s' * (count != 1)}, of which a part is held out, do not fill a network's "
            f"batch of {settings.batch_size}; expected {least} or more. Raise --samples, or give a larger --data_set."
        )


def _check_files(options: argparse.Namespace) -> Path:
    """The picture beside the JSON file, both of which can be written."""
    if options.output.suffix != ".json":
        raise UserError(f"--output {options.output}: expected a file that ends in .json.")
    picture = options.output.with_suffix(".png")
    for path in (options.output, picture):
        if not options.overwrite and os.path.lexists(path):
            raise UserError(f"--output {options.output}: {path} is there already; give a new file, or --overwrite.")
        check_output(path, "--output", overwrite=True)
    return picture


def _of_model(chosen: Chosen, options: argparse.Namespace) -> tuple[list[int], Sequence[str]]:
    """The blocks and parts to measure."""
    found = mixers(chosen.model)
    known = PARTS if hasattr(found[0], "scans") else PARTS[:1]
    blocks, parts = options.blocks or [len(found) // 2], options.parts or known
    if not all(0 <= block < len(found) for block in blocks):
        raise UserError(f"--blocks {' '.join(map(str, blocks))}; expected some of 0 to {len(found) - 1}.")
    if not set(parts) <= set(known):
        raise UserError(f"--parts {' '.join(parts)}; this model has {', '.join(known)}.")
    return blocks, parts


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=PROG,
        usage=f"{PROG} [--model_pth FOLDER] [--flag value ...]",
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
    add(
        "--per_token",
        action="store_true",
        help="a network for each token, not one that is told the token: higher bounds, as many times the steps",
    )
    add("--output", type=read_path, default=Path("runs/information.json"), help="(default: runs/information.json)")
    add("--overwrite", action="store_true", help="replace files that are there")
    return parser


def _batches(data: ImageData, samples: int, part: str) -> Iterator[torch.Tensor]:
    """The first images of the evaluation data; those that cannot be read are left out."""
    count = 0
    with Progress(f"{part}: image", samples, line_every=LINE_EVERY) as progress:
        for images, _ in data.eval_batches():
            images = images[: samples - count]
            yield images
            count += len(images)
            progress.update(len(images))
            if count >= samples:
                break


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
