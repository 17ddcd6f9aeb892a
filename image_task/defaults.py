"""How to train on pictures of one's own, from how many there are and what the weights know already.

Chosen by the validation accuracy on crops of three photographs, and tried on crops of three others.
"""

from __future__ import annotations

from dataclasses import dataclass

FEW = 1000  # pictures below which there are too few steps to learn from mixed or much changed ones
STEPS = 250  # at least, of a training from scratch
PEAK = 1e-3  # rate of AdamW for weights that nobody trained: a head, or all of them
BODY = 5e-5  # for those that somebody did
PATCHES = 4  # a side, at least, of an input that is made smaller


@dataclass(frozen=True)
class Recipe:
    """Flags of `image_task.main` by name, for the dense training and for the re-training."""

    dense: dict[str, str]
    retrained: dict[str, str]


def recipe(
    num_train: int,
    *,
    trained: bool,
    batch_size: int | None = None,
    epochs: int | None = None,
    retrain_epochs: int | None = None,
    lr: float | None = None,
) -> Recipe:
    """Batch, epochs, rates and augmentation for a number of training pictures.

    Small batches give a small folder enough steps; a rate does not grow with the batch, for AdamW's steps do not.

    Args:
        num_train: pictures.
        trained: whether the body's weights are trained, so that only the head is new.
        batch_size, epochs, retrain_epochs: instead of those chosen.
        lr: the peak rate of a step; of a new head on a trained body, that of the body.
    """
    batch = min(batch_size or min(8 if num_train < FEW else 64, num_train), num_train)
    per_epoch = max(num_train // batch, 1)
    if trained:
        passes, peak = (10 if num_train < FEW else 5), lr or BODY
    else:
        passes, peak = max(12 if num_train < FEW else 30, -(-STEPS // per_epoch)), lr or PEAK
    passes = epochs or passes
    always = {"batch_size": f"{batch}", "accumulation": "1", "schedule": "iteration", "drop_path": "0"}
    if num_train < FEW:
        always |= {"mixup": "0", "cutmix": "0", "repeated_aug": "False"}
        always |= {"aa": "rand-m5-n1-mstd0.5-inc1", "reprob": "0", "betas": "0.9,0.95"}
    elif batch % 2:
        always |= {"mixup": "0", "cutmix": "0"}
    dense = {
        **always,
        "epochs": f"{passes}",
        "warmup_epochs": f"{min(passes // 5, 5)}",
        "lr": _scaled(peak, batch),
    }
    if trained:
        dense["head_lr_scale"] = f"{PEAK / BODY:g}"
    again = retrain_epochs or max(passes // 3, 3)
    retrained = {**always, "epochs": f"{again}", "lr": _scaled(peak / 5, batch), "distill": "True"}
    return Recipe(dense, retrained)


def _scaled(peak: float, batch: int) -> str:
    """`--lr`, which is for 512 images, of a rate for a batch."""
    return f"{peak * 512 / batch:.4g}"


def small_size(own: int, patch: int) -> int:
    """Edge in pixels of the input that a CPU trains from scratch on: 64 or `PATCHES` patches, or the model's own.

    Args:
        own: the model's, in pixels.
        patch: edge of a patch.
    """
    return min(own, max(64 // patch, PATCHES) * patch)
