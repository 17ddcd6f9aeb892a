"""How fast the models of a task are, dense and merged, interleaved in one process."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import nn

from rmeeto.cli.config import TaskConfig
from rmeeto.cli.flags import FlagParser, in_flags
from rmeeto.cli.parser import run_small
from rmeeto.cli.speed_flags import ModelConfig, SpeedConfig, read_options, speed_parser
from rmeeto.cli.speed_plot import draw, title, window_of
from rmeeto.cli.target import FITTED_BATCH, check, fit, found, merge_words
from rmeeto.cli.timms import create_model, is_timms, unknown
from rmeeto.doctor import cpu_name, has_bf16
from rmeeto.engine.dist import World
from rmeeto.engine.record import environment
from rmeeto.errors import UserError, shown
from rmeeto.measure import Timing, benchmark, count_flops, token_reduction_ratio
from rmeeto.merge import MergeConfig

DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WIDTHS = {"batch": 5, "r": 4, "tokens": 7, "GMACs": 8, "theory": 7, "ms": 9, "IQR": 8, "images/s": 9,
          "speed-up": 9, "MB": 6, "merge": 8}  # fmt: skip
LEGEND = """\
tokens   at the end            ms       median of a batch; IQR: its spread
GMACs    a sample, merging too MB       peak memory of a GPU
theory   dense GMACs / these   merge    share of the time, and its spread"""
NOISE = "within the noise: the measured share is not above its spread over the rounds"
BUSY = 0.2  # interquartile range over median
DEFAULT_FOLDER = Path("runs", "throughput")
MEASURED = ("dtype", "compile", "cuda_graph", "by_samples", "runs", "warmup")  # settings that the JSON file names
_SIZES = re.compile(r"_patch\d+_\d+$")


@dataclass(frozen=True)
class Throughput:
    """What a task says about its throughput command.

    Args:
        prog, description: of the command; `prog` is how it is started, and is written to the JSON file.
        config: the class of the task's settings.
        models: names of its models.
        aliases: other names of them.
        prefixes: what a short name may leave out at its beginning; at its end that is the patch and size.
        model, r, batch_size: what is timed by default.
        samples: what a batch consists of, in the plural.
        timms: whether timm's own models are taken by timm's names.
        add_flags: adds the task's own flags, of section "own".
        own: their defaults.
        arguments: from the options to arguments of the model.
        check: refuses what of the task's own flags could not be measured.
        more: measures the task's own figures and prints them; they are added to the JSON file.
    """

    prog: str
    description: str
    config: type[TaskConfig]
    models: Iterable[str]
    aliases: Iterable[str]
    prefixes: Sequence[str]
    model: str
    r: tuple[int, ...]
    batch_size: tuple[int, ...]
    samples: str
    timms: bool = False
    add_flags: Callable[[FlagParser], None] = lambda parser: None
    own: Mapping[str, Any] = field(default_factory=dict)
    arguments: Callable[[argparse.Namespace], Mapping[str, Any]] = lambda options: {}
    check: Callable[[argparse.Namespace], None] = lambda options: None
    more: Callable[[argparse.Namespace], Mapping[str, Any]] = lambda options: {}

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a command line; the exit code of `run_small`."""
        sections = {"merge": MergeConfig, "model": ModelConfig, "speed": SpeedConfig}
        return run_small(
            lambda: self.measure(self.parse(sys.argv[1:] if argv is None else argv)),
            lambda message: in_flags(message, sections),
            "interrupted; nothing was written",
        )

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Read and check a command line.

        Raises:
            UserError: a flag or value that cannot be used.
        """
        options, notices = read_options(self.parser(), self.config(), self.own, argv)
        for notice in notices:
            print(f"note: {shown(notice)}", file=sys.stderr)
        options.command = [*self.prog.split(), *argv]
        options.model = self.resolve(options.model or self.model)
        asked = options.r or (() if options.target or options.merge is None else self.r)
        schedules = [r for r in dict.fromkeys(asked) if isinstance(r, tuple)]
        options.r = [*sorted({0, *(r for r in asked if not isinstance(r, tuple))}), *schedules]
        options.batch_size = list(options.batch_size or ([FITTED_BATCH] if options.target else self.batch_size))
        if options.device == "auto":
            options.device = "cuda" if torch.cuda.is_available() else "cpu"
        if options.dtype == "auto":
            options.dtype = "bf16" if options.device == "cuda" else "fp32"
        _check(options)
        self.check(options)
        if options.output is None:
            parts = [options.model, options.dtype, options.device]
            parts += ["compiled"] * options.compile + ["graphed"] * options.cuda_graph
            parts += ["by-samples"] * options.by_samples
            options.output = str(DEFAULT_FOLDER / ("-".join(parts) + ".json"))
        options.output = Path(options.output)
        _check_output(options.output, options.overwrite)
        return options

    def parser(self) -> FlagParser:
        """All flags."""
        return speed_parser(self.prog, self.description, self.add_flags, self.r, self.batch_size, self.model)

    def resolve(self, name: str) -> str:
        """The registered name of a model, from that name or its short form.

        Raises:
            UserError: no such model.
        """
        known = [*self.models, *self.aliases]
        if name in known:
            return name
        short = {}
        for prefix in ("", *self.prefixes):
            for full in known:
                if full.startswith(prefix):
                    rest = full.removeprefix(prefix)
                    for form in (rest, _SIZES.sub("", rest)):
                        short.setdefault(form, full)
        if name in short:
            return short[name]
        if self.timms and is_timms(name):
            return name
        raise unknown(name, self.models, self.aliases, self.timms)

    def measure(self, options: argparse.Namespace) -> dict[str, Any]:
        """Time the models at every batch size, print the table, write the JSON file and the plot.

        Returns:
            What the JSON file holds.

        Raises:
            UserError: settings that the model refuses, a batch that does not fit into memory, or a file that cannot
                be written.
        """
        device = torch.device(options.device)
        merges = [MergeSetting(r, None) for r in options.r]
        merges += [MergeSetting(r, tuple(options.window)) for r in options.r if r and options.window]
        models = {merge.name: self.build(options, merge).to(device) for merge in merges}
        dense = models[merges[0].name]
        fitted = None
        if options.target:
            merging = self.build(options, MergeSetting(1, None)).to(device)
            fitted = fit(merging, options, DTYPES[options.dtype])
            models["fitted"] = self.build(options, MergeSetting(fitted, None)).to(device)
        result = {
            "what": "throughput",
            **environment(World(device)),
            "command": options.command,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            "model": options.model,
            "samples": self.samples,
            "input_size": list(dense.pretrained_cfg["input_size"]),
            **{name: getattr(options, name) for name in MEASURED},
            "results": [],
        }
        heads = [f"{self.samples}/s" if head == "images/s" else head for head in WIDTHS]
        print(
            f"{title(result)}\n{result['device']}, {result['threads']} CPU thread(s)\n\n{_line(heads)}",
            flush=True,
        )
        if device.type == "cpu" and options.dtype == "bf16" and not has_bf16():
            print("note: this processor emulates bf16: it is slower than fp32", flush=True)
        for batch_size in options.batch_size:
            for row in _at(batch_size, models, options):
                print(_line(_cells(row)), flush=True)
                result["results"].append(row)
        window = f"\n*        matched in a window of {','.join(map(str, options.window))}" if options.window else ""
        print(LEGEND + window)
        if fitted is not None:
            result |= found(self.prog, options, fitted, result["results"][-1])
        result |= self.more(options)
        _write(result, options.output)
        if any("merging_note" in row for row in result["results"]):
            print("note: <noise: merging takes less time than the runs scatter")
        if any(row["spread_ms"] > BUSY * row["latency_ms"] for row in result["results"]):
            print(f"note: runs scatter by more than {BUSY:.0%}: the machine is busy, the figures rough")
        return result

    def build(self, options: argparse.Namespace, merge: MergeSetting) -> nn.Module:
        """A model without trained weights: they change no time."""
        try:
            config = None
            if merge.r:
                window = {} if merge.window is None else {"window": merge.window}
                config = dataclasses.replace(options.merge or MergeConfig(), r=merge.r, **window)
        except ValueError as error:
            raise UserError(str(error)) from None
        arguments = {"img_size": options.img_size, **self.arguments(options)}
        try:
            return create_model(options.model, seed=0, merge=config, **arguments).eval()
        except UserError as error:
            if not isinstance(merge.r, tuple):
                raise
            apart = " ".join(map(str, merge.r))
            raise UserError(str(error), f"--r {apart} times {len(merge.r)} models: commas make one schedule") from None


@dataclass(frozen=True)
class MergeSetting:
    """One of the models that are timed."""

    r: int | float | tuple[int, ...]
    window: tuple[int, int, int] | None

    @property
    def name(self) -> str:
        r = ",".join(map(str, self.r)) if isinstance(self.r, tuple) else self.r
        return f"r = {r}" + (f", window {','.join(map(str, self.window))}" if self.window else "")


def _check(options: argparse.Namespace) -> None:
    if options.target:
        check(options)
    if options.merge is None and options.r != [0]:
        raise UserError("--r has no effect: --merge_method none is the dense model; leave it out.")
    given = [*merge_words(options.merge), *(["--window"] if options.window else [])]
    if options.r == [0] and not options.target and given:
        raise UserError(f"{given[0]} has no effect: --r 0 merges nothing; leave it out, or give other --r.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU (python -m rmeeto.doctor says why); use --device cpu.")
    if options.cuda_graph and options.device != "cuda":
        raise UserError("--cuda_graph needs a GPU, and this runs on cpu; leave the flag out.")
    if options.by_samples and (options.device, options.dtype, options.compile) != ("cpu", "fp32", False):
        raise UserError("--by_samples is of eager passes in fp32 on a CPU; leave it out, or --compile and --dtype.")
    if options.output is not None and not options.output.endswith(".json"):
        raise UserError(f"--output is {options.output}; expected a file that ends in .json.")


def _at(batch_size: int, models: dict[str, nn.Module], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each model at one batch size; the first model is the dense one."""
    dense = next(iter(models.values()))
    try:
        timings = benchmark(
            {f"{options.model}, {name}": model for name, model in models.items()},
            torch.randn(batch_size, *dense.pretrained_cfg["input_size"], device=options.device),
            runs=options.runs,
            warmup=options.warmup,
            dtype=DTYPES[options.dtype],
            compile=options.compile,
            cuda_graph=options.cuda_graph,
            by_samples=options.by_samples,
            merging=True,
        )
    except torch.OutOfMemoryError:
        raise UserError(f"--batch_size {batch_size} does not fit into the GPU's memory; give a smaller one.") from None
    found = list(timings.values())
    return [_row(model, dense, timing, found[0]) for model, timing in zip(models.values(), found)]


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
        **_merging(timing),
    }


def _merging(timing: Timing) -> dict[str, Any]:
    """The share of merging as a finding, which is none within the noise, beside what was measured."""
    share = timing.merging_share
    if share is None or share > timing.merging_spread:
        return {"merging_share_measured": share}
    return {"merging_share": None, "merging_share_measured": share, "merging_note": NOISE}


def _check_output(file: Path, overwrite: bool) -> None:
    """Whether the JSON file and its plot can be written, in a folder that exists or one below it; makes nothing."""
    folder = file.parent
    made = (folder, *folder.parents) if folder == DEFAULT_FOLDER else (folder, folder.parent)
    try:
        for path in (file, file.with_suffix(".png")):
            if not path.exists():
                continue
            if not overwrite:
                raise UserError(f"{path} exists; give another --output, or --overwrite to replace it.")
            path.open("ab").close()
        exists = next((path for path in made if path.exists()), folder.parent)
        with TemporaryFile(dir=exists):
            pass
    except OSError as error:
        raise UserError(
            f"--output is {file}, which cannot be written ({error.strerror}); expected a place in a folder that "
            "exists and can be written, or one new folder below it."
        ) from None


def _write(result: dict[str, Any], file: Path) -> None:
    plot = file.with_suffix(".png")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=2) + "\n")
        draw(result).savefig(plot, dpi=150)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error}); give another --output.") from None
    print("", shown(file), shown(plot), sep="\n")


def _cells(row: dict[str, Any]) -> list[str]:
    memory, share, spread = row["peak_memory_bytes"], row["merging_share"], row["merging_spread"]
    merging = "-" if share is None else f"{100 * share:.0f}±{100 * spread:.0f}%"
    return [
        f"{row['batch_size']}",
        "list" if isinstance(row["r"], tuple) else f"{row['r']}{'*' if window_of(row) else ''}",
        f"{row['tokens'][-1]}",
        f"{row['macs']['full'] / 1e9:.3f}",
        f"{row['theory']:.2f}",
        f"{row['latency_ms']:.2f}",
        f"{row['spread_ms']:.2f}",
        f"{row['images_per_s']:.1f}",
        f"{row['speed_up']:.2f}",
        "-" if memory is None else f"{memory / 1e6:.0f}",
        "<noise" if "merging_note" in row else merging,
    ]


def _line(cells: Iterable[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS.values()))
