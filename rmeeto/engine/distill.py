"""The re-training loss: cross entropy plus the divergence from a dense teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmeeto.engine.teacher_cache import Answers, TeacherCache
from rmeeto.settings import Need, Settings, setting

DISTILLED = Need(lambda config: config.distill.distill, "distill.distill is off", fatal=True)
CACHED = Need(lambda config: config.distill.teacher_cache is not None, "there is no distill.teacher_cache", fatal=True)


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
    teacher_cache: str | None = setting(
        None,
        "folder of the teacher's answers, written where they are missing: further runs on the same batches (data, "
        "augmentation, seed, samples of a step) skip the teacher; --teacher cache: <output_dir>/teacher-cache",
        needs=DISTILLED,
        smoke=None,
    )
    teacher_top: int = setting(
        10,
        "most probable classes of a sample that the cache keeps; all others count as one",
        within="[1, 1000000]",
        needs=CACHED,
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


def divergence_of_top(logits: Tensor, answers: Answers) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) where of the teacher only the most probable classes are known.

    The others count as one class, with the probability that is left, so it is at most the whole divergence, and equals
    it where every class is known.

    Args:
        logits: (B, K) of the student.
        answers: of the teacher, on the same device.

    Returns:
        The divergence, and the probability that the teacher gives to the other classes; means over the batch.
    """
    student, known, classes = F.log_softmax(logits, dim=-1), answers.log_probs, answers.classes
    if classes is None:
        return F.kl_div(student, known, reduction="batchmean", log_target=True), known.new_zeros(())
    probs = known.exp()
    left = (1 - probs.sum(1)).clamp_min(0)
    others = student.scatter(1, classes, -torch.inf).logsumexp(1)
    divergence = (probs * (known - student.gather(1, classes))).sum(1) + torch.xlogy(left, left) - left * others
    return divergence.mean(), left.mean()


class DistillLoss:
    """`cross entropy + weight * KL(teacher || student)`, the paper's loss; the first term without a teacher.

    Args:
        teacher: a model from images to logits; it is put in evaluation mode (no drop path) and never trained.
        weight: of the second term.
        smoothing: label smoothing for class indices; soft targets carry their own.
        cache: of the teacher's answers; `place` has to be called before each micro-batch.
    """

    def __init__(
        self,
        teacher: nn.Module | None = None,
        weight: float = 0.5,
        smoothing: float = 0.0,
        cache: TeacherCache | None = None,
    ) -> None:
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.weight = weight
        self.smoothing = smoothing
        self.cache = cache
        self._answers: Answers | None = None
        self._cast: tuple[Any, nn.Module] | None = None

    def place(self, epoch: int, number: int, images: Tensor) -> None:
        """Say which micro-batch comes next, which is what a cache knows it by.

        Args:
            epoch: from 0.
            number: in the epoch, over all processes.
            images: its samples.
        """
        if self.cache is not None:
            self._answers = self.cache.find(epoch, number, images)

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
        if self.cache is None:
            kl, more = distillation_loss(logits, self._ask(images)), {}
        else:
            if self._answers is None:
                self._answers = self.cache.keep(self._ask(images))
            answers = Answers(*(part if part is None else part.to(logits.device) for part in self._answers))
            kl, left = divergence_of_top(logits, answers)
            more = {} if answers.classes is None else {"teacher_rest": left}
        return {"loss": base + self.weight * kl, "classification": base, "distillation": kl, **more}

    def _ask(self, images: Tensor) -> Tensor:
        assert self.teacher is not None
        with torch.inference_mode():
            logits = self._in_autocasts_type(images.device.type)(images)
        # The copy is an ordinary tensor: autograd may not keep one that was made under inference_mode.
        return logits.float().clone()

    def _in_autocasts_type(self, device: str) -> nn.Module:
        """The teacher with its linear layers' weights cast once, instead of by autocast in every step."""
        assert self.teacher is not None
        compiled = any(module._compiled_call_impl is not None for module in self.teacher.modules())
        if compiled or not torch.is_autocast_enabled(device):
            return self.teacher
        dtype = torch.get_autocast_dtype(device)
        weights = [module.weight for module in self.teacher.modules() if type(module) is nn.Linear]
        key = dtype, [(id(weight), weight._version) for weight in weights]
        if self._cast is None or self._cast[0] != key:
            shared: dict[int, Any] = {id(p): p for p in (*self.teacher.parameters(), *self.teacher.buffers())}
            shared |= {id(w): nn.Parameter(w.detach().to(dtype), requires_grad=False) for w in weights}
            self._cast = key, copy.deepcopy(self.teacher, shared)
        return self._cast[1]
