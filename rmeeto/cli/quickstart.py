"""What the quick starts of both tasks share: the command, the arms, the speed, the kept older folder."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmeeto.cli.parser import Parser, run_small
from rmeeto.engine.record import RunConfig
from rmeeto.errors import UserError, shown
from rmeeto.json_file import read_json
from rmeeto.measure import benchmark
from rmeeto.weights import read_checkpoint

SUMMARY = "summary.json"
MARK = "quickstart"  # of a summary whose figures are not there yet


def run_quickstart(
    argv: Sequence[str] | None, description: str | None, folder: str, weights: Path, work: Callable[..., Any]
) -> int:
    """Run a quick start's command line; errors that the user can fix are one line on stderr.

    Args:
        argv: without the program's name; None for this process's own.
        description: for --help.
        folder, weights: defaults of --output_dir and --weights.
        work: called with the folder, the seed and the weights.

    Returns:
        The exit code of `run_small`.
    """
    parser = Parser(prog="quickstart", description=description)
    parser.add_argument("--output_dir", default=folder, help="an older quick start's is kept as <name>-1, -2, ...")
    parser.add_argument("--seed", type=int, default=0, help="of the re-training")
    parser.add_argument("--weights", default=str(weights), help="of the dense model")
    args = parser.parse_args(argv)

    def checked() -> None:
        RunConfig(seed=args.seed)
        if not args.output_dir:
            raise UserError("--output_dir is empty; give a folder.")
        work(Path(os.path.abspath(args.output_dir)), args.seed, args.weights)

    return run_small(checked, interrupted="interrupted; the same command starts anew and keeps what is there")


def make_folder(folder: Path, seed: int) -> None:
    """Make the folder of a quick start, marked by a ``summary.json``; an older one's becomes ``<name>-<n>``.

    Raises:
        UserError: there is something else, or it cannot be made.
    """
    try:
        if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            if not _is_ours(folder):
                raise UserError(
                    f"--output_dir {folder} is no quick start's (it holds no {SUMMARY} of one), and stays as it is; "
                    "give another."
                )
            names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
            older = next(name for name in names if not os.path.lexists(name))
            folder.rename(older)
            print(shown(f"the older {folder} is now {older}"), flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMMARY).write_text(json.dumps({MARK: "not finished", "seed": seed}) + "\n")
    except OSError as error:
        raise UserError(f"--output_dir {folder} cannot be made ({error.strerror}); give another.") from None


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds the summary of a quick start, finished or not."""
    try:
        return bool({MARK, "throughput"} & set(read_json(folder / SUMMARY)))
    except UserError:
        return False


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: tiny operators are too small to be shared, and on a busy machine waiting threads spin."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_steps(
    folder: Path,
    seed: int,
    weights: str,
    *,
    prepare: Callable[[Path], list[str]],
    merged: list[str],
    train: list[str],
    run: Callable[[list[str]], dict[str, Any]],
    speed: Callable[[], dict[str, Any]],
    draw: Callable[[Path, list[str]], list[int]],
    **more: Any,
) -> dict[str, Any]:
    """Evaluate dense, merge, re-train, train the control arm, measure, draw; a line is printed of each arm.

    Args:
        folder: where the runs and ``summary.json`` go; an older quick start's is moved aside.
        seed: of the re-training.
        weights: of the dense model.
        prepare: makes the data ready in the folder; returns the flags of model and data.
        merged, train: flags of merging and of training.
        run: the task's, from flags to a result with ``top1``.
        speed: measures a full-size model, dense and merged.
        draw: draws the re-trained model of the flags into the folder; its token counts.
        more: of the summary.

    Returns:
        The summary: top-1 in percent of each arm, r, token counts, throughput, seed, seconds.
    """
    began = time.perf_counter()
    read_checkpoint(Path(weights))  # before anything is moved or written
    make_folder(folder, seed)
    common = [*prepare(folder), "--seed", str(seed), "--output_dir", str(folder)]
    r, epochs = (int(flags[flags.index(name) + 1]) for flags, name in ((merged, "--num_prune"), (train, "--epochs")))
    arms = {
        "dense": ("dense", ["--eval"]),
        "training_free": (f"merged (r = {r}), training-free", [*merged, "--eval"]),
        "retrained": (f"merged, re-trained {epochs} epochs", [*merged, *train]),
        "control": (f"control: dense, {epochs} more epochs", train),
    }
    top1, start = dict[str, float](), time.perf_counter()
    for arm, (title, flags) in arms.items():
        with one_thread(), (folder / "log.txt").open("a") as file, contextlib.redirect_stdout(file):
            top1[arm] = run([*common, "--model_pth", weights, *flags, "--name", arm])["top1"]
        print(f"  {title:<34} {top1[arm]:6.2f} % top-1   {time.perf_counter() - start:5.0f} s", flush=True)
    throughput = speed()
    counts = draw(folder, [*common, "--model_pth", str(folder / "retrained" / "last.pt"), *merged, "--eval"])
    summary = {**top1, "r": r, "token_counts": counts, **more, "throughput": throughput, "seed": seed}
    return write_summary(folder, summary, began)


def measure_speed(dense: nn.Module, merged: nn.Module, batch: Tensor, described: str) -> dict[str, Any]:
    """Samples per second of a model dense and merged, interleaved in one process.

    Args:
        dense, merged: on the batch's device, which is where they are measured.
        batch: an input.
        described: model and input, for the summary.

    Returns:
        dense, merged (samples per second at the median), ratio, spread_percent (between the quartiles of each one's
        runs), r, input (in words).
    """
    speed = benchmark({"dense": dense.eval(), "merged": merged.eval()}, batch)
    device = batch.device.type
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device == "cpu" else ""
    rates = {name: round(timing.images_per_s, 2) for name, timing in speed.items()}
    result = {
        **rates,
        "ratio": round(speed["dense"].median_s / speed["merged"].median_s, 3),
        "spread_percent": {name: round(100 * timing.spread_s / timing.median_s, 1) for name, timing in speed.items()},
        "r": merged.merge_config.r,
        "input": f"{described}, random weights, batch {len(batch)}, fp32, {device}{threads}",
    }
    print(f"  speed: {result['input']}")
    print(f"    dense {rates['dense']:.2f}, merged (r = {result['r']}) {rates['merged']:.2f} a second: "
          f"{result['ratio']:.2f} x", flush=True)  # fmt: skip
    return result


def write_summary(folder: Path, summary: dict[str, Any], began: float) -> dict[str, Any]:
    """Write ``summary.json`` with the seconds since `began`, and say where it is; the whole summary."""
    summary = {**summary, "seconds": round(time.perf_counter() - began, 1)}
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    print(f"{shown(folder / SUMMARY)} and the pictures beside it: {summary['seconds']:.0f} s in all")
    return summary
