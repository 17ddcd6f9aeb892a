"""The frame of a task's main program: errors in two lines, the run folder, the model, what is printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from rmeeto.cli.command import Command
from rmeeto.cli.config import TaskConfig
from rmeeto.engine import RunFolder, World, start
from rmeeto.engine.dist import RankError, speaks
from rmeeto.engine.precision import amp_dtype
from rmeeto.engine.record import state_of
from rmeeto.errors import UserError, shown
from rmeeto.json_file import read_json
from rmeeto.settings import harmless


def run_command(
    argv: Sequence[str] | None,
    command: Command,
    check: Callable[[Any], list[str]],
    run: Callable[[Any], Any],
) -> int:
    """Run a command line; errors that the user can fix are one or two lines on stderr.

    Args:
        argv: without the program's name; None for this process's own.
        command: what its flags are.
        check: what can be checked of the settings without touching data or weights; returns lines to print.
        run: what the settings say.

    Returns:
        The exit code: 0, 1 when nobody reads the output any more, 2 for a user error, 130 after Ctrl-C.
    """
    is_main = speaks()
    config = None
    try:
        config, dry_run, notices = command.parse(sys.argv[1:] if argv is None else argv)
        notices += map(command.in_flags, check(config))
        for notice in notices if is_main else ():
            print(f"note: {shown(notice)}", file=sys.stderr)
        if dry_run:
            print(json.dumps(config.to_dict(), indent=2, allow_nan=False), flush=True)
        else:
            run(config)
        return 0
    except UserError as error:
        if is_main or isinstance(error, RankError):
            print(f"error: {command.in_flags(str(error))}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print(
            "error: the GPU has too little memory; lower --batch-size and raise --accumulation",
            file=sys.stderr,
        )
        return 2
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        print(
            "error: the machine has too little memory; lower --batch-size and raise --accumulation",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # who read the output, such as head, has left; the exit flushes it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        if is_main:
            print(_farewell(config), file=sys.stderr)
        return 130


def run_in_folder(
    config: TaskConfig,
    build: Callable[[World], Any],
    describe: Callable[[Any, World], Sequence[str]],
    work: Callable[[Any, World, RunFolder], dict[str, Any]],
    samples: str,
) -> dict[str, Any]:
    """Do the work of the settings in their run folder; nothing is written before all of them are known to hold.

    Args:
        build: what the work needs (models, data); fails where the settings do not fit together.
        describe: what is about to run, in a few lines.
        work: evaluates or trains; returns what result.json will hold.
        samples: what the data consists of, in the plural.

    Returns:
        What result.json holds. For a finished run under `resume` the same again, without running.

    Raises:
        UserError: settings, data, weights or a run folder that do not fit together.
    """
    settings = config.to_dict()
    with start(config.run.device) as world:
        may_differ = harmless(config.sections())
        state = world.on_main(lambda: state_of(config.folder, settings, config.run.resume, may_differ))
        if state == "done":
            world.print(f"{config.folder} is done already")
            return world.on_main(lambda: read_json(config.folder / "result.json"))
        parts = world.together(lambda: build(world))
        with RunFolder(config.folder, settings, world) as folder:
            world.print(*describe(parts, world))
            result = work(parts, world, folder)
            folder.finish(result)
        world.print(summary(result, config.folder, samples))
    return result


def create_model(name: str, *, seed: int, **arguments: Any) -> nn.Module:
    """A registered model whose weights are drawn from a seed.

    Args:
        arguments: of the model; those that are None are left out.

    Raises:
        UserError: settings that the model refuses.
    """
    torch.manual_seed(seed)
    try:
        return timm.create_model(
            name, **{key: value for key, value in arguments.items() if value is not None}
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None


def model_line(config: TaskConfig, model: nn.Module) -> str:
    """Name, setting, size and tokens of a model."""
    tokens, size = model.num_tokens, model.pretrained_cfg["input_size"]
    merged = tokens[0] if tokens[0] == tokens[-1] else f"{tokens[0]} to {tokens[-1]} (r = {config.merge.r})"
    frames = "" if len(size) == 3 else f"{size[1]} frames of "
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return (
        f"model   {config.model.model}, {config.setting}, {millions:.2f} M parameters, {merged} tokens, "
        f"{frames}{size[-1]} pixels"
    )


def device_line(config: TaskConfig, world: World) -> str:
    """How many of which device, and the number format."""
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}
    return f"device  {world.size} x {world.device.type}, {names[amp_dtype(config.run.amp, world.device)]}"


def summary(result: dict[str, Any], folder: Path, samples: str) -> str:
    """The outcome in a line."""
    averaged = f", averaged weights {result['ema']['top1']:.2f}" if "ema" in result else ""
    missing = f", {result['unreadable']} unreadable counted as wrong" if result["unreadable"] else ""
    return (
        f"top-1 {result['top1']:.2f}  top-5 {result['top5']:.2f}  loss {result['loss']:.4f}{averaged} "
        f"({result['count']} {samples}{missing}): {folder}"
    )


def _farewell(config: TaskConfig | None) -> str:
    if config is None or not (config.folder / "last.pt").exists():
        return "interrupted before the first checkpoint"
    return f"interrupted; the same command with --resume goes on from {shown(config.folder / 'last.pt')}"
