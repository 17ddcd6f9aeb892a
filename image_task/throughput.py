"""How fast a model is, dense and merged, interleaved in one process: `python -m image_task.throughput --help`."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from torch import nn

from image_task.models import ALIASES, MODELS
from rmeeto import MergeConfig
from rmeeto.doctor import cpu_name
from rmeeto.engine.dist import World
from rmeeto.engine.flags import normalise
from rmeeto.engine.record import environment
from rmeeto.errors import UserError
from rmeeto.measure import Timing, benchmark, count_flops, token_reduction_ratio
from rmeeto.measure.speed import MIN_RUNS

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Okabe and Ito's colours, which stay apart for every kind of colour vision; the markers do so in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
COLUMNS = {"batch": 5, "r": 4, "tokens": 7, "GMACs": 8, "theory": 7, "ms": 9, "IQR": 8, "images/s": 9,
           "speed-up": 9, "MB": 6, "merge": 8}  # fmt: skip
LEGEND = """\
tokens   at the end            ms       median of a batch; IQR: its spread
GMACs    both directions       MB       peak memory of a GPU
theory   dense GMACs / these   merge    share of the time, and its spread"""
BUSY = 0.2  # interquartile range over median


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; errors that the user can fix are one or two lines on stderr.

    Returns:
        The exit code: 0, 2 for a user error, 130 after Ctrl-C.
    """
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        measure(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read and check a command line.

    Raises:
        UserError: a flag or value that cannot be used.
    """
    parser = _Parser(prog="image_task.throughput", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--model",
        default="vim_tiny",
        help="a registered name, or a short one: vim_small, videomamba_tiny, deit_base",
    )
    add(
        "--r",
        type=int,
        nargs="+",
        default=[0, 5, 11],
        help="tokens that each merge removes; 0, dense, always runs",
    )
    add("--metric", default="X", help="X, B, C or delta; for DeiT X, Q, K or V")
    add("--batch_size", type=int, nargs="+", default=[1, 32], help="images in a batch")
    add("--img_size", type=int, default=None, help="side in pixels; default: the model's")
    add("--dtype", choices=DTYPES, default="fp32", help="of autocast; fp32: none")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--compile", action="store_true", help="time torch.compile(fullgraph=True) of the models")
    add("--cuda_graph", action="store_true", help="time replays of CUDA graphs")
    add("--runs", type=int, default=11, help=f"timed runs of each model, {MIN_RUNS} or more")
    add("--warmup", type=int, default=3, help="passes before the first run")
    add("--output", type=Path, default=None, help="the JSON file; the plot goes beside it as .png")
    add("--overwrite", action="store_true", help="replace files that exist")
    options = parser.parse_args([normalise(token) for token in argv])
    options.model = resolve(options.model)
    options.r = sorted({0, *options.r})
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    _check(options)
    if options.output is None:
        parts = [options.model, options.dtype, options.device]
        parts += ["compiled"] * options.compile + ["graphed"] * options.cuda_graph
        options.output = Path("runs", "throughput", "-".join(parts) + ".json")
    for file in (options.output, options.output.with_suffix(".png")):
        if file.exists() and not options.overwrite:
            raise UserError(f"{file} exists; give another --output, or --overwrite to replace it.")
    return options


def resolve(name: str) -> str:
    """The registered name of a model, from that name or its short form.

    Raises:
        UserError: no such model.
    """
    known = [*MODELS, *ALIASES]
    for full in (name, f"{name}_patch16_224", f"rmeeto_{name}", f"rmeeto_{name}_patch16_224"):
        if full in known:
            return full
    close = difflib.get_close_matches(
        name, [n.removeprefix("rmeeto_").removesuffix("_patch16_224") for n in known], 3
    )
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(MODELS)}."
    raise UserError(f"--model is {name!r}, which is not registered; {hint}")


def _check(options: argparse.Namespace) -> None:
    if min(options.batch_size) < 1 or min(options.r) < 0 or options.runs < MIN_RUNS or options.warmup < 1:
        raise UserError(
            f"--batch_size {options.batch_size} --r {options.r} --runs {options.runs} --warmup {options.warmup}; "
            f"expected at least 1, 0, {MIN_RUNS} and 1."
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no GPU (python -m rmeeto.doctor says why); use --device cpu."
        )
    if options.cuda_graph and options.device != "cuda":
        raise UserError("--cuda_graph needs a GPU, and this runs on cpu; leave the flag out.")
    if options.output is not None and options.output.suffix != ".json":
        raise UserError(f"--output is {options.output}; expected a file that ends in .json.")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time the models at every batch size, print the table, write the JSON file and the plot.

    Returns:
        What the JSON file holds.

    Raises:
        UserError: settings that the model refuses, a batch that does not fit into memory, or a file that cannot be
            written.
    """
    device = torch.device(options.device)
    models = [build(options, r).to(device) for r in options.r]
    result = {
        "what": "throughput",
        **environment(World(device)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "model": options.model,
        "input_size": list(models[0].pretrained_cfg["input_size"]),
        **{name: getattr(options, name) for name in ("dtype", "compile", "cuda_graph", "runs", "warmup")},
        "results": [],
    }
    print(
        f"{_title(result)}\n{result['device']}, {result['threads']} CPU thread(s)\n\n{_line(COLUMNS)}",
        flush=True,
    )
    for batch_size in options.batch_size:
        for row in _at(batch_size, models, options):
            print(_line(_cells(row)), flush=True)
            result["results"].append(row)
    plot = options.output.with_suffix(".png")
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
        draw(result).savefig(plot, dpi=150)
    except OSError as error:
        raise UserError(f"{options.output} cannot be written ({error}); give another --output.") from None
    print(f"{LEGEND}\n\n{options.output}\n{plot}")
    if any(row["spread_ms"] > BUSY * row["latency_ms"] for row in result["results"]):
        print(f"note: runs scatter by more than {BUSY:.0%}: the machine is busy, the figures rough")
    return result


def build(options: argparse.Namespace, r: int) -> nn.Module:
    """A model without trained weights: they change no time."""
    size = {} if options.img_size is None else {"img_size": options.img_size}
    try:
        merge = MergeConfig(r=r, metric=options.metric) if r else None
        return timm.create_model(options.model, merge=merge, **size).eval()
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None


def _at(batch_size: int, models: list[nn.Module], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each model at one batch size; the first model is the dense one."""
    size = models[0].pretrained_cfg["input_size"]
    try:
        timings = benchmark(
            {f"{options.model}, r = {r}": model for r, model in zip(options.r, models)},
            torch.randn(batch_size, *size, device=options.device),
            runs=options.runs,
            warmup=options.warmup,
            dtype=DTYPES[options.dtype],
            compile=options.compile,
            cuda_graph=options.cuda_graph,
            merging=True,
        )
    except torch.OutOfMemoryError:
        raise UserError(
            f"--batch_size {batch_size} does not fit into the GPU's memory; give a smaller one."
        ) from None
    found = list(timings.values())
    return [_row(model, models[0], timing, found[0]) for model, timing in zip(models, found)]


def _row(model: nn.Module, dense: nn.Module, timing: Timing, dense_timing: Timing) -> dict[str, Any]:
    size = model.pretrained_cfg["input_size"]
    merge = model.merge_config
    macs = {convention: count_flops(model, size, convention).total for convention in ("paper", "full")}
    return {
        "r": 0 if merge is None else merge.r,
        "merge": None if merge is None else merge.to_dict(),
        "tokens": model.num_tokens,
        "token_reduction_ratio": token_reduction_ratio(model),
        "macs": macs,
        "theory": count_flops(dense, size, "full").total / macs["full"],
        "speed_up": dense_timing.median_s / timing.median_s,
        **timing.to_dict(),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    memory, share, spread = row["peak_memory_bytes"], row["merging_share"], row["merging_spread"]
    return [
        f"{row['batch_size']}",
        f"{row['r']}",
        f"{row['tokens'][-1]}",
        f"{row['macs']['full'] / 1e9:.3f}",
        f"{row['theory']:.2f}",
        f"{row['latency_ms']:.2f}",
        f"{row['spread_ms']:.2f}",
        f"{row['images_per_s']:.1f}",
        f"{row['speed_up']:.2f}",
        "-" if memory is None else f"{memory / 1e6:.0f}",
        "-" if share is None else f"{100 * share:.0f}±{100 * spread:.0f}%",
    ]


def _line(cells: Iterable[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values()))


def draw(result: dict[str, Any]) -> Figure:
    """Speed-up beside its theory, and images per second, against r: a line for each batch size.

    Args:
        result: the content of the JSON file.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = result["results"]
    batches = list(dict.fromkeys(row["batch_size"] for row in rows))
    for batch, colour, marker in zip(batches, cycle(COLOURS), cycle(MARKERS)):
        mine = [row for row in rows if row["batch_size"] == batch]
        style = {"color": colour, "marker": marker, "capsize": 3, "label": f"batch {batch}"}
        r = [row["r"] for row in mine]
        quartiles = np.array([np.percentile(row["runs_ms"], (25, 50, 75)) for row in mine])
        for ax, scale in ((left, mine[0]["latency_ms"]), (right, 1e3 * batch)):
            value, low, high = scale / quartiles[:, 1], scale / quartiles[:, 2], scale / quartiles[:, 0]
            ax.errorbar(r, value, yerr=(value - low, high - value), **style)
    theory = [row["theory"] for row in rows if row["batch_size"] == batches[0]]
    left.plot(r, theory, color="black", linestyle="--", label="multiply-accumulates")
    left.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    left.set_ylabel("speed-up over dense (times)")
    right.set_ylabel("throughput (images/s)")
    right.set_yscale("log")
    right.yaxis.set_major_formatter(ScalarFormatter())
    right.yaxis.set_minor_formatter(ScalarFormatter())
    for ax in (left, right):
        ax.set_xlabel("r (tokens removed by each merge)")
        ax.set_xticks(r)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside center right", frameon=False, fontsize=8)
    figure.suptitle(
        f"{_title(result)}, {result['device']}: medians and quartiles of {result['runs']} runs", fontsize=9
    )
    return figure


def _title(settings: dict[str, Any]) -> str:
    ways = ["compiled"] * settings["compile"] + ["CUDA graph"] * settings["cuda_graph"]
    return ", ".join([settings["model"], f"{settings['input_size'][-1]} px", settings["dtype"], *ways])


if __name__ == "__main__":
    sys.exit(main())
