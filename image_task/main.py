"""Evaluate or re-train a merged image model: `python -m image_task.main --help`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python image_task/main.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import timm
import torch
from torch import nn

from image_task.config import Config
from image_task.data import ImageData, build_data
from image_task.datasets import KNOWN
from image_task.flags import parse
from image_task.models import load_weights
from rmeeto.engine import DistillLoss, RunFolder, World, evaluate, fit, scaled_lr, start
from rmeeto.engine.dist import RankError
from rmeeto.engine.precision import amp_dtype
from rmeeto.engine.record import read_json, state_of
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; errors that the user can fix are one or two lines on stderr.

    Returns:
        The exit code: 0, 2 for a user error, 130 after Ctrl-C.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    config = None
    try:
        config, dry_run, notices = parse(sys.argv[1:] if argv is None else argv)
        for notice in notices if is_main else ():
            print(f"note: {notice}", file=sys.stderr)
        if dry_run:
            check(config)
            print(json.dumps(config.to_dict(), indent=2))
        else:
            run(config)
        return 0
    except UserError as error:
        if is_main or isinstance(error, RankError):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print(
            "error: the GPU has too little memory; lower --batch-size and raise --accumulation",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        if is_main:
            print(_farewell(config), file=sys.stderr)
        return 130


def run(config: Config) -> dict[str, Any]:
    """Evaluate or train as the settings say; nothing is written before all of them are known to hold.

    Returns:
        What result.json holds: top1, top5, loss, count, unreadable; after a training also best, epochs, steps
        (and ema). For a finished run under `resume` the same again, without running.

    Raises:
        UserError: settings, data, weights or a run folder that do not fit together.
    """
    settings = config.to_dict()
    with start(config.run.device) as world:
        if world.on_main(lambda: state_of(config.folder, settings, config.run.resume)) == "done":
            world.print(f"{config.folder} is done already")
            return world.on_main(lambda: read_json(config.folder / "result.json"))
        model, teacher, data = world.together(lambda: build(config, world))
        with RunFolder(config.folder, settings, world) as folder:
            world.print(describe(config, model, data, world))
            if config.run.eval:
                torch.manual_seed(config.run.seed)
                folder.start()
                result = evaluate(model, data, world, amp_dtype(config.run.amp, world.device))
                folder.log("eval", {"epoch": 0, "step": 0}, result)
            else:
                criterion = DistillLoss(teacher, config.distill.distill_weight, config.data.smoothing)
                lr = scaled_lr(config.optim.lr, config.data.batch_size, world.size)
                result = fit(model, data, criterion, config.optim, config.run, world, folder, peak_lr=lr)
            folder.finish(result)
        world.print(summary(result, config.folder))
    return result


def build(config: Config, world: World) -> tuple[nn.Module, nn.Module | None, ImageData]:
    """The student, its dense teacher (or None) and the data of this process, on `world.device`.

    Raises:
        UserError: the data or the weights are missing or do not fit the model.
    """
    amp_dtype(config.run.amp, world.device)
    img_size = sketch(config).pretrained_cfg["input_size"][-1]
    data = build_data(
        config.data,
        img_size=img_size,
        rank=world.rank,
        world_size=world.size,
        seed=config.run.seed,
        train=not config.run.eval,
    )
    classes = config.model.nb_classes or data.num_classes
    if classes != data.num_classes:
        raise UserError(
            f"--nb_classes is {classes}, but {config.data.data_set} has {data.num_classes} classes; "
            "leave the flag out, or give the data set of the weights."
        )
    model = build_model(config, config.merge, num_classes=classes).to(world.device)
    teacher = None
    if config.distill.distill and not config.run.eval:
        teacher = build_model(config, None, num_classes=classes, teacher=True).to(world.device)
    return model, teacher, data


def build_model(
    config: Config, merge: MergeConfig | None, *, num_classes: int | None = None, teacher: bool = False
) -> nn.Module:
    """The model of the settings, merged as `merge` says, with its weights (or some drawn from the seed).

    Args:
        merge: None for the dense model.
        num_classes: of the head; None for the model's own number.
        teacher: the teacher's model and weights instead, without drop path.

    Raises:
        UserError: settings that the model refuses, or weights that do not fit.
    """
    chosen = config.model
    name, path = chosen.model, chosen.model_pth
    if teacher:
        name, path = chosen.teacher or name, chosen.teacher_pth or path
    model = _create(config, name, merge, num_classes, 0.0 if teacher else chosen.drop_path)
    if path is not None:
        load_weights(model, path)
    return model


def check(config: Config) -> None:
    """What can be checked of the settings without touching data or weights.

    Raises:
        UserError: an unknown data set, or settings that the model refuses.
    """
    sketch(config)
    name = config.data.data_set
    if name.partition("/")[0] not in {known.partition("/")[0] for known in KNOWN.split()}:
        raise UserError(f"--data_set is {name!r}; known are {KNOWN}.")


def sketch(config: Config) -> nn.Module:
    """The model without weights or memory: it checks the settings and knows the input's size."""
    with torch.device("meta"):
        return _create(config, config.model.model, config.merge, None, config.model.drop_path)


def _create(
    config: Config, name: str, merge: MergeConfig | None, num_classes: int | None, drop_path: float
) -> nn.Module:
    sizes = {"num_classes": num_classes, "img_size": config.data.input_size}
    given = {key: value for key, value in sizes.items() if value is not None}
    torch.manual_seed(config.run.seed)
    try:
        return timm.create_model(name, merge=merge, drop_path_rate=drop_path, **given)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None


def describe(config: Config, model: nn.Module, data: ImageData, world: World) -> str:
    """What is about to run, in a few lines."""
    tokens, size = model.num_tokens, model.pretrained_cfg["input_size"][-1]
    merged = tokens[0] if tokens[0] == tokens[-1] else f"{tokens[0]} to {tokens[-1]} (r = {config.merge.r})"
    amp = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[
        amp_dtype(config.run.amp, world.device)
    ]
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    lines = [
        f"model   {config.model.model}, {config.setting}, {millions:.2f} M parameters, {merged} tokens, {size} pixels",
        f"weights {config.model.model_pth or f'drawn from seed {config.run.seed}'}",
        f"data    {config.data.data_set}: {data.num_train} images to train, {data.num_eval} to evaluate, "
        f"{data.num_classes} classes",
        f"device  {world.size} x {world.device.type}, {amp}",
    ]
    if not config.run.eval:
        lr, lowest = scaled_lr(config.optim.lr, config.data.batch_size, world.size), config.optim.min_lr
        rises = " (it rises: --min_lr lies above)" if lr < lowest else ""
        teacher = "a dense teacher" if config.distill.distill else "no teacher"
        lines.append(f"train   {config.optim.epochs} epochs, rate {lr:.3g} to {lowest:.3g}{rises}, {teacher}")
    return "\n".join([*lines, f"folder  {config.folder}"])


def summary(result: dict[str, Any], folder: Path) -> str:
    """The outcome in a line."""
    averaged = f", averaged weights {result['ema']['top1']:.2f}" if "ema" in result else ""
    missing = f", {result['unreadable']} unreadable counted as wrong" if result["unreadable"] else ""
    return (
        f"top-1 {result['top1']:.2f}  top-5 {result['top5']:.2f}  loss {result['loss']:.4f}{averaged} "
        f"({result['count']} images{missing}): {folder}"
    )


def _farewell(config: Config | None) -> str:
    if config is None or not (config.folder / "last.pt").exists():
        return "interrupted before the first checkpoint"
    return f"interrupted; the same command with --resume goes on from {config.folder / 'last.pt'}"


if __name__ == "__main__":
    sys.exit(main())
