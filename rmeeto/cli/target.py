"""`--target` of a throughput command: the schedule that reaches a speed, how fast it is, how to re-train with it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from rmeeto.errors import UserError
from rmeeto.measure import fit_schedule
from rmeeto.merge import MergeConfig

FITTED_BATCH = 8


class Target(NamedTuple):
    """What a schedule is fitted to: an argument of `fit_schedule`, its value, and as it was written."""

    kind: str
    value: float
    text: str

    def __str__(self) -> str:
        return self.text


def read_target(text: str) -> Target:
    """A speed-up, ``1.3x``, or a latency, ``20ms`` or ``0.02s``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(x|ms|s)", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; expected a speed-up over the dense model, 1.3x, or a batch's latency, 20ms"
        )
    number, unit = float(match[1]), match[2]
    if unit == "x":
        return Target("target_ratio", number, text)
    return Target("target_latency", number / 1e3 if unit == "ms" else number, text)


def check(options: argparse.Namespace) -> None:
    """Refuse what a schedule is not fitted to.

    Raises:
        UserError: a target out of range, several batch sizes, other passes than eager ones, or matching in a window.
    """
    if len(options.batch_size) > 1:
        raise UserError(
            f"--target {options.target} with --batch_size {' '.join(map(str, options.batch_size))}; a schedule is "
            "fitted to one size of a batch: give one."
        )
    if options.target.value < 1 and options.target.kind == "target_ratio" or options.target.value == 0:
        raise UserError(f"--target {options.target}; expected a speed-up of 1x or more, or a latency above 0 ms.")
    for flag in ("compile", "cuda_graph", "by_samples", "window"):
        if getattr(options, flag):
            raise UserError(f"--target is fitted to eager passes with exact matching; leave --{flag} out.")


def fit(model: nn.Module, options: argparse.Namespace, dtype: torch.dtype | None) -> tuple[int, ...]:
    """r of each merging block, as `fit_schedule` chooses it on the options' device and batch size.

    Args:
        model: on that device, in evaluation mode.
        options: of the command line.
        dtype: of autocast, or None.

    Raises:
        UserError: a target that cannot be reached, or a model that cannot be fitted.
    """
    print(f"fitting {options.model} to {options.target} ...", flush=True)
    device = torch.device(options.device)
    size, batch_size, runs = model.pretrained_cfg["input_size"], options.batch_size[0], options.runs
    goal = {options.target.kind: options.target.value}
    try:
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            return fit_schedule(model, size, device, batch_size=batch_size, runs=runs, **goal).r  # type: ignore[return-value]
    except ValueError as error:
        raise UserError(f"--target {options.target}: {error}") from None


def merge_words(merge: MergeConfig | None) -> list[str]:
    """The flags of a merge setting, but for r, that is not the default."""
    plain, usual = (merge or MergeConfig()).to_dict(), MergeConfig().to_dict()
    return [w for name in plain if name != "r" and plain[name] != usual[name] for w in (f"--{name}", str(plain[name]))]


def found(prog: str, options: argparse.Namespace, r: Sequence[int], row: dict[str, Any]) -> dict[str, Any]:
    """Print how fast the schedule is, and the flags to re-train with; the same for the JSON file.

    Args:
        prog: the command that measures; the one that trains stands beside it.
        options: of the command line.
        r: what was chosen.
        row: what was measured.
    """
    flags = ["--model", options.model, "--num_prune", *(map(str, r) if any(r) else "0")]
    flags += merge_words(options.merge)
    flags += ["--input_size", str(options.img_size)] if options.img_size else []
    for name in ("num_frames", "tubelet_size"):
        flags += [f"--{name}", str(getattr(options, name))] if getattr(options, name, None) else []
    print(f"\n{options.target} asked for: {row['speed_up']:.2f}x, {row['latency_ms']:.2f} ms measured")
    print(f"r of each merging block: {' '.join(map(str, r))}")
    print("re-train:", prog.replace("throughput", "main"), " ".join(flags))
    return {"target": str(options.target), "retrain": flags}
