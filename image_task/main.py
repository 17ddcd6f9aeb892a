"""Evaluate or re-train a merged image model: `python -m image_task.main --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python image_task/main.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import torch
from torch import nn

from image_task.config import Config
from image_task.data import ImageData, build_data
from image_task.datasets import KNOWN
from image_task.flags import COMMAND
from image_task.models import load_weights
from image_task.models.pretrained import load_official, official
from image_task.transforms import train_transform
from rmeeto.cli.main import create_model, device_line, model_line, run_command, run_in_folder
from rmeeto.cli.merging import merge_notes
from rmeeto.data.augment import build_mixup
from rmeeto.engine import DistillLoss, RunFolder, World, evaluate, fit, scaled_lr
from rmeeto.engine.precision import amp_dtype
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig

Parts = tuple[nn.Module, nn.Module | None, ImageData]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; see `run_command`."""
    return run_command(argv, COMMAND, check, run)


def run(config: Config) -> dict[str, Any]:
    """Evaluate or train as the settings say; nothing is written before all of them are known to hold.

    Returns:
        What result.json holds: top1, top5, loss, count, unreadable; after a training also best, epochs, steps
        (and ema). For a finished run under `resume` the same again, without running.

    Raises:
        UserError: settings, data, weights or a run folder that do not fit together.
    """

    def work(parts: Parts, world: World, folder: RunFolder) -> dict[str, Any]:
        model, teacher, data = parts
        if config.run.eval:
            torch.manual_seed(config.run.seed)
            folder.start()
            result = evaluate(model, data, world, amp_dtype(config.run.amp, world.device))
            folder.log("eval", {"epoch": 0, "step": 0}, result)
            return result
        criterion = DistillLoss(teacher, config.distill.distill_weight, config.data.smoothing)
        return fit(
            model, data, criterion, config.optim, config.run, world, folder, peak_lr=peak_lr(config, world)
        )

    return run_in_folder(
        config,
        lambda world: build(config, world),
        lambda parts, world: describe(config, parts, world),
        work,
        "images",
    )


def peak_lr(config: Config, world: World) -> float:
    """The full learning rate for the images of a step (accumulation does not count)."""
    return scaled_lr(config.optim.lr, config.data.batch_size, world.size)


def build(config: Config, world: World) -> Parts:
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
        UserError: settings that the model refuses, weights that do not fit, or a new head where none is trained.
    """
    chosen = config.model
    name, path = chosen.model, chosen.model_pth
    if teacher:
        name, path = chosen.teacher or name, chosen.teacher_pth or path
    ema: bool | str = {"auto": "auto", "plain": False, "ema": True}[chosen.weights]
    model = _create(config, name, merge, num_classes, 0.0 if teacher else chosen.drop_path)
    if path is None and not chosen.pretrained:
        return model
    new_head = chosen.delete_head and not (teacher and chosen.teacher_pth)
    if new_head and teacher:
        raise UserError(
            "--delete_head leaves the teacher no head to learn from; give a dense model that was trained on these "
            "classes as --teacher_pth, or leave out --distill."
        )
    if new_head and config.run.eval:
        raise UserError("--delete_head leaves no head to evaluate; leave it out, or train (without --eval).")
    if path is not None:
        load_weights(model, path, ema, new_head=new_head)
    else:
        load_official(model, name, ema, new_head=new_head)
    return model


def check(config: Config) -> list[str]:
    """What can be checked of the settings without touching data or weights.

    Returns:
        Lines to print on what they do not do.

    Raises:
        UserError: settings that the model refuses, or that no data could make good.
    """
    model = sketch(config)
    if config.model.pretrained:
        official(config.model.model)
    name = config.data.data_set
    if name.partition("/")[0] not in {known.partition("/")[0] for known in KNOWN.split()}:
        raise UserError(f"--data_set is {name!r}; known are {KNOWN}.")
    if not config.run.eval:
        img_size = model.pretrained_cfg["input_size"][-1]
        train_transform(config.data, img_size)
        build_mixup(config.data, config.model.nb_classes or 1, config.data.batch_size, img_size)
    return merge_notes(config.model.model, model, config.merge)


def sketch(config: Config) -> nn.Module:
    """The model without weights or memory: it checks the settings and knows the input's size."""
    with torch.device("meta"):
        return _create(config, config.model.model, config.merge, None, config.model.drop_path)


def _create(
    config: Config, name: str, merge: MergeConfig | None, num_classes: int | None, drop_path: float
) -> nn.Module:
    return create_model(
        name,
        seed=config.run.seed,
        merge=merge,
        drop_path_rate=drop_path,
        num_classes=num_classes,
        img_size=config.data.input_size,
    )


def describe(config: Config, parts: Parts, world: World) -> list[str]:
    """What is about to run, in a few lines."""
    model, _, data = parts
    weights = config.model.model_pth or f"drawn from seed {config.run.seed}"
    if config.model.pretrained:
        weights = f"official, {official(config.model.model).file}"
    if config.model.delete_head:
        weights += " (head new)"
    train = "" if config.run.eval else f"{data.num_train} images to train, "
    lines = [
        model_line(config, model),
        f"weights {weights}",
        f"data    {config.data.data_set}: {train}{data.num_eval} {'' if train else 'images '}to evaluate, "
        f"{data.num_classes} classes",
        device_line(config, world),
    ]
    if not config.run.eval:
        lr, lowest = peak_lr(config, world), config.optim.min_lr
        rises = " (it rises: --min_lr lies above)" if lr < lowest else ""
        teacher = "a dense teacher" if config.distill.distill else "no teacher"
        lines.append(f"train   {config.optim.epochs} epochs, rate {lr:.3g} to {lowest:.3g}{rises}, {teacher}")
    return [*lines, f"folder  {config.folder}"]


if __name__ == "__main__":
    sys.exit(main())
