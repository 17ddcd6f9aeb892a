"""The re-training loss: cross entropy plus the divergence from a dense teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmeeto.settings import Need, Settings, setting

DISTILLED = Need(lambda config: config.distill.distill, "distill.distill is off", fatal=True)


@dataclass(frozen=True)
class DistillConfig(Settings):
    """Whether a dense teacher guides the training, and how much it counts."""

    only: ClassVar[str] = "training"

    distill: bool = setting(False, "learn from a dense teacher as well as from the labels")
    distill_weight: float = setting(
        0.5,
        "weight of KL(teacher || student) beside the cross entropy's 1",
        within="[0, inf)",
        needs=DISTILLED,
    )


def classification_loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy, averaged over the batch.

    Args:
        logits: (B, K).
        targets: (B, K) probabilities (mixup's, which carry their own smoothing), or (B,) class indices.
        smoothing: label smoothing for class indices.

    Returns:
        A scalar.
    """
    soft = targets.is_floating_point()
    return F.cross_entropy(logits, targets, label_smoothing=0.0 if soft else smoothing)


def distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) of (B, K) logits at temperature 1, averaged over the batch."""
    student, teacher = F.log_softmax(logits, dim=-1), F.log_softmax(teacher_logits, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class DistillLoss:
    """`cross entropy + weight * KL(teacher || student)`, the paper's loss; the first term without a teacher.

    Args:
        teacher: a model from images to logits; it is put in evaluation mode (no drop path) and never trained.
        weight: of the second term.
        smoothing: label smoothing for class indices; soft targets carry their own.
    """

    def __init__(self, teacher: nn.Module | None = None, weight: float = 0.5, smoothing: float = 0.0) -> None:
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.weight = weight
        self.smoothing = smoothing

    def __call__(self, images: Tensor, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The scalar to minimise under "loss", and its terms when there are two (all float32).

        Args:
            images: the student's input, which the teacher sees too.
            logits: (B, K) of the student.
            targets: (B, K) or (B,), see `classification_loss`.
        """
        logits = logits.float()
        base = classification_loss(logits, targets, self.smoothing)
        if self.teacher is None:
            return {"loss": base}
        with torch.inference_mode():
            teacher_logits = self.teacher(images)
        # The copy is an ordinary tensor: autograd may not keep one that was made under inference_mode.
        kl = distillation_loss(logits, teacher_logits.float().clone())
        return {"loss": base + self.weight * kl, "classification": base, "distillation": kl}
