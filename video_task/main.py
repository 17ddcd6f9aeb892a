"""Test or re-train a merged video model: `python -m video_task.main --help`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

if __package__ in (None, ""):  # started as `python video_task/main.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import torch
from torch import nn

from rmeeto.cli.main import create_model, device_line, model_line, run_command, run_in_folder
from rmeeto.cli.merging import merge_notes
from rmeeto.engine import DistillLoss, RunFolder, World, checkpoint, fit, scaled_lr
from rmeeto.engine.precision import amp_dtype
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from video_task.config import VideoConfig, VideoDataConfig
from video_task.data import VideoData, build_data
from video_task.data.digits import write_digits
from video_task.data.kinetics import check_data
from video_task.flags import COMMAND
from video_task.models import load_weights
from video_task.models.weights import read_head_map
from video_task.optim import REFERENCE_BATCH, parameter_groups
from video_task.views import evaluate_views

# The clips of a smoke run: enough of each of two classes for its few batches on each of 8 processes.
SMOKE_CLIPS = {"num_train": 16, "num_val": 8, "digits": (3, 7), "directions": ("right",)}


class Parts(NamedTuple):
    """What a run is made of, on `world.device`."""

    model: nn.Module
    teacher: nn.Module | None
    data: VideoData
    weights: str  # where they come from


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; see `run_command`."""
    return run_command(argv, COMMAND, check, run)


def run(config: VideoConfig) -> dict[str, Any]:
    """Test, or train and test, as the settings say; nothing is written before all of them are known to hold.

    Returns:
        What result.json holds: top1, top5, loss, count and unreadable of the test on all views; after a training also
        epochs, steps, and under "validation" what `fit` returns (of one view of each video). For a finished run under
        `resume` the same again, without running.

    Raises:
        UserError: settings, data, weights or a run folder that do not fit together.
    """
    with TemporaryDirectory() as clips:
        data = config.data
        if config.run.smoke:  # the same files on every process
            write_digits(clips, **SMOKE_CLIPS)
            data = dataclasses.replace(data, data_path=clips)
        return run_in_folder(
            config,
            lambda world: build(config, world, data),
            lambda parts, world: describe(config, parts, world),
            lambda parts, world, folder: work(config, parts, world, folder),
            "videos",
        )


def work(config: VideoConfig, parts: Parts, world: World, folder: RunFolder) -> dict[str, Any]:
    """Train unless only a test is wanted, then test."""
    model, teacher, data, _ = parts
    trained: dict[str, Any] = {}
    if config.run.eval:
        torch.manual_seed(config.run.seed)
        folder.start()
    else:
        model.set_grad_checkpointing(config.model.use_checkpoint, config.model.checkpoint_num)
        validation = fit(
            model,
            data,
            DistillLoss(teacher, config.distill.distill_weight, config.data.smoothing),
            config.optim,
            config.run,
            world,
            folder,
            peak_lr=peak_lr(config, world),
            groups=parameter_groups(model, config.optim),
        )
        trained = {"epochs": validation["epochs"], "steps": validation["steps"], "validation": validation}
        if config.run.test_best:
            best = world.together(lambda: checkpoint.load(folder.path / "best.pt", "model"))
            model.load_state_dict(best["model"])
    result = evaluate_views(model, data, world, folder.path, amp_dtype(config.run.amp, world.device))
    folder.log("test", {"epoch": trained.get("epochs", 0), "step": trained.get("steps", 0)}, result)
    return {**result, **trained}


def peak_lr(config: VideoConfig, world: World) -> float:
    """The full learning rate for all the clips of an optimizer step."""
    clips = config.data.batch_size * config.data.num_sample * config.optim.accumulation
    return scaled_lr(config.optim.lr, clips, world.size, REFERENCE_BATCH)


def build(config: VideoConfig, world: World, clips: VideoDataConfig | None = None) -> Parts:
    """The student, its dense teacher and the data of this process.

    Args:
        clips: the data settings with the place of clips made on the spot; None for those of `config`.

    Raises:
        UserError: the data or the weights are missing or do not fit the model.
    """
    amp_dtype(config.run.amp, world.device)
    data = build_data(
        clips or config.data,
        img_size=sketch(config).pretrained_cfg["input_size"][-1],
        rank=world.rank,
        world_size=world.size,
        seed=config.run.seed,
        train=not config.run.eval,
        num_classes=config.model.nb_classes,
    )
    classes = config.model.nb_classes or data.num_classes
    if classes != data.num_classes:
        raise UserError(
            f"--nb_classes is {classes}, but {config.data.data_set} has {data.num_classes} classes; "
            "leave the flag out, or give the data set of the weights."
        )
    model, weights = build_model(config, config.merge, num_classes=classes)
    teacher = None
    if config.distill.distill and not config.run.eval:
        teacher = build_model(config, None, num_classes=classes, teacher=True)[0].to(world.device)
    return Parts(model.to(world.device), teacher, data, weights)


def build_model(
    config: VideoConfig,
    merge: MergeConfig | None,
    *,
    num_classes: int | None = None,
    teacher: bool = False,
) -> tuple[nn.Module, str]:
    """The model of the settings, merged as `merge` says, with its weights (or some drawn from the seed).

    Args:
        merge: None for the dense model.
        num_classes: of the head; None for the model's own number.
        teacher: the teacher's model and weights instead, without drop path.

    Returns:
        The model, and where its weights come from.

    Raises:
        UserError: settings that the model refuses, or weights that do not fit.
    """
    chosen = config.model
    name, path = chosen.model, chosen.model_pth
    if teacher:
        name, path = chosen.teacher or name, chosen.teacher_pth or path
    model = _create(config, name, merge, num_classes, 0.0 if teacher else chosen.drop_path)
    if path is None:
        return model, f"drawn from seed {config.run.seed}"
    report = load_weights(
        model,
        path,
        {"auto": "auto", "plain": False, "ema": True}[chosen.weights],
        head_map=None if chosen.head_map is None else read_head_map(chosen.head_map),
        new_head=chosen.delete_head and not (teacher and chosen.teacher_pth),
    )
    if "head.weight" in report.new and (config.run.eval or teacher):
        raise UserError(
            f"{path} brings no head for {num_classes} classes, so there is nothing to "
            f"{'learn from' if teacher else 'test'}; give weights of these classes, or a --head_map."
        )
    changes = [f"{key} resized" for key in report.resized] + [f"{key} new" for key in report.new]
    return model, f"{path}{' (' + ', '.join(changes) + ')' if changes else ''}"


def check(config: VideoConfig) -> list[str]:
    """What can be checked of the settings without touching data or weights.

    Returns:
        Lines to print on what they do not do.

    Raises:
        UserError: settings that the model refuses, or that no data could make good.
    """
    model = sketch(config)
    check_data(config.data, img_size=model.pretrained_cfg["input_size"][-1], train=not config.run.eval)
    return merge_notes(config.model.model, model, config.merge)


def sketch(config: VideoConfig) -> nn.Module:
    """The model without weights or memory: it checks the settings and knows the input's size."""
    with torch.device("meta"):
        return _create(config, config.model.model, config.merge, None, config.model.drop_path)


def _create(
    config: VideoConfig, name: str, merge: MergeConfig | None, num_classes: int | None, drop_path: float
) -> nn.Module:
    return create_model(
        name,
        seed=config.run.seed,
        merge=merge,
        drop_path_rate=drop_path,
        num_classes=num_classes,
        img_size=config.data.input_size,
        num_frames=config.data.num_frames,
        tubelet_size=config.model.tubelet_size,
    )


def describe(config: VideoConfig, parts: Parts, world: World) -> list[str]:
    """What is about to run, in a few lines."""
    data = parts.data
    train = "" if config.run.eval else f"{data.num_train} videos to train, {data.num_eval} to validate, "
    lines = [
        model_line(config, parts.model),
        f"weights {parts.weights}",
        f"data    {config.data.data_set}: {train}{data.num_test} {'' if train else 'videos '}"
        f"to test on {len(data.views)} views, {data.num_classes} classes",
        device_line(config, world),
    ]
    if not config.run.eval:
        peak = peak_lr(config, world)
        lowest = config.optim.min_lr * (peak / config.optim.lr if config.optim.schedule == "iteration" else 1)
        teacher = "a dense teacher" if config.distill.distill else "no teacher"
        lines.append(f"train   {config.optim.epochs} epochs, rate {peak:.3g} to {lowest:.3g}, {teacher}")
    return [*lines, f"folder  {config.folder}"]


if __name__ == "__main__":
    sys.exit(main())
