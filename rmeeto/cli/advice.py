"""What a training run's settings cannot achieve, in lines to print before it starts; and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmeeto.errors import UserError
from rmeeto.json_file import read_json

FEWEST_STEPS = 10
TOO_LOW = 100  # a rate this many times below what untrained weights need moves nothing


def epoch_line(config: Any, data: Any, world_size: int, samples: str) -> str:
    """How an epoch is cut into optimizer steps, and how many samples it leaves out.

    Args:
        config: all settings of the run.
        data: `num_train` and `batches_per_epoch` are read.
        samples: what the data consists of, such as "images".
    """
    steps, per_step = steps_of(config, data), config.data.batch_size * config.optim.accumulation * world_size
    used = data.batches_per_epoch * config.data.batch_size * world_size
    dropped = data.num_train - used
    rest = f"{dropped} of {data.num_train} dropped" if dropped > 0 else "none dropped"
    return f"{steps} optimizer step{'s' * (steps > 1)} of {min(per_step, used)} {samples} an epoch, {rest}"


def steps_of(config: Any, data: Any) -> int:
    """Optimizer steps of an epoch."""
    return -(-data.batches_per_epoch // config.optim.accumulation)


def size_notes(size: int, patch: int, stride: int) -> list[str]:
    """Whether patches leave a part of the input out; all in pixels."""
    unseen = (size - patch) % stride
    if not unseen:
        return []
    return [
        f"--input_size {size}: the last {unseen} row{'s' * (unseen > 1)} and columns are never seen, for patches have "
        f"an edge of {patch}; {size - unseen} sees the same"
    ]


def reading_notes(config: Any, data: Any, weights: str) -> list[str]:
    """What makes an accuracy mean something else than it seems.

    Args:
        config: all settings of the run.
        data: `num_classes` is read.
        weights: where they come from, and what was changed of them.
    """
    notes = []
    if config.run.eval and not config.model.starts_trained and not config.run.smoke:
        notes.append("the weights are random, so the accuracy is chance; --model_pth names trained ones")
    if data.num_classes == 1:
        notes.append("there is one class alone, so every answer is right; expected <split>/<class>/<image>")
    if "pos_embed resized" in weights:
        size = _trained_size(config.model.model_pth)
        known = "" if size is None else f", --input_size {size}"
        notes.append(f"the weights were trained at another input size{known}")
    return notes


def _trained_size(weights: str | None) -> int | None:
    """The input size that the config.json beside the weights names, where it is a run's."""
    try:
        size = read_json(Path(weights or "").parent / "config.json")["data"]["input_size"]
    except (UserError, KeyError, TypeError):
        return None
    return size if isinstance(size, int) else None


def training_notes(config: Any, data: Any, defaults: Mapping[str, Any]) -> list[str]:
    """What cannot train as it stands, and what to change.

    Args:
        config: all settings of the run.
        data: `batches_per_epoch` is read.
        defaults: settings of how to train weights, or a head, that nobody trained; none where they are as ever.
    """
    if config.run.smoke:
        return []
    optim, notes = config.optim, []
    total = steps_of(config, data) * optim.epochs
    if total < FEWEST_STEPS:
        notes.append(
            f"{total} optimizer step{'s' * (total > 1)} in all train{'s' * (total == 1)} next to nothing; lower "
            f"--batch_size {config.data.batch_size}, or raise --epochs {optim.epochs}"
        )
    if optim.accumulation > data.batches_per_epoch:
        notes.append(
            f"--accumulation {optim.accumulation} is never filled: an epoch has {data.batches_per_epoch} micro-batches "
            f"of --batch_size {config.data.batch_size}"
        )
    needed, scale = defaults.get("lr", 0.0), defaults.get("head_lr_scale", 1.0)
    if optim.lr * optim.head_lr_scale * TOO_LOW <= needed * scale:
        what = "a new head" if config.model.delete_head else "weights from scratch"
        head = f" with --head_lr_scale {scale:g}" if scale != 1 else ""
        notes.append(f"--lr {optim.lr:g} re-trains trained weights; {what} would need about {needed:g}{head}")
    if config.distill.distill and config.model.has_weights and not config.model.starts_trained:
        notes.append(
            "the student starts from random weights beside a trained teacher; --model_pth gives it trained ones"
        )
    return notes


def summary(result: dict[str, Any], folder: Path, samples: str, num_classes: int) -> str:
    """The outcome in a line, with an earlier epoch where that was better."""
    averaged = f", averaged weights {result['ema']['top1']:.2f}" if "ema" in result else ""
    missing = f", {result['unreadable']} unreadable counted as wrong" if result["unreadable"] else ""
    top5 = f"  top-5 {result['top5']:.2f}" if num_classes > 5 else ""  # of five classes all are among five
    best = result.get("best")
    better = best and (best["top1"] > max(result["top1"], result.get("ema", result)["top1"]))
    return (
        f"top-1 {result['top1']:.2f}{top5}  loss {result['loss']:.4f}{averaged} "
        f"({result['count']} {samples}{missing}): {folder}"
    ) + (f"; best top-1 {best['top1']:.2f} after epoch {best['epoch']}: best.pt" if better else "")
