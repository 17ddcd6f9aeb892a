from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rmeeto.engine import DistillConfig, DistillLoss
from rmeeto.errors import UserError
from tests.engine.toy import CLASSES, toy_model
from tests.golden_data import Case, names


class Recorded(nn.Module):
    """A teacher whose logits are known."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


@pytest.mark.parametrize("name", names("distill_loss.npz"))
def test_loss_and_gradient_are_the_recorded_ones(name):
    golden = Case("distill_loss.npz", name)
    config = golden.config
    smoothing = 0.1 if config["base"] == "smooth0.1" else 0.0
    pred = torch.from_numpy(golden["pred"]).requires_grad_()
    criterion = DistillLoss(Recorded(torch.from_numpy(golden["teacher"])), config["distill_weight"], smoothing)
    losses = criterion(torch.zeros(1), pred, torch.from_numpy(golden["target"]))
    losses["loss"].backward()
    for name, recorded in (("loss", "total64"), ("classification", "cls64"), ("distillation", "kl64")):
        assert losses[name].item() == pytest.approx(float(golden[recorded]), rel=1e-6)
    expected = golden["grad_pred"]
    assert np.abs(pred.grad.numpy() - expected).max() <= 1e-6 * np.abs(expected).max()


def test_teacher_is_in_evaluation_mode_and_learns_nothing():
    teacher = toy_model(dropout=0.5).train()
    criterion = DistillLoss(teacher)
    images, targets = torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 2, 3])
    student = toy_model(seed=1)
    losses = [criterion(images, student(images), targets)["loss"] for _ in range(2)]
    losses[0].backward()
    assert losses[0] == losses[1], "the teacher's dropout is on"
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_student_that_equals_its_teacher_has_no_divergence():
    model, images = toy_model(), torch.randn(4, 3, 4, 4)
    losses = DistillLoss(model)(images, model(images), torch.tensor([0, 1, 2, 3]))
    assert losses["distillation"].item() == pytest.approx(0, abs=1e-7)
    assert losses["loss"].item() == pytest.approx(losses["classification"].item())


def test_soft_targets_are_not_smoothed_again():
    logits, targets = torch.randn(4, 6), torch.softmax(torch.randn(4, 6), 1)
    losses = [DistillLoss(smoothing=smoothing)(logits, logits, targets)["loss"] for smoothing in (0.0, 0.3)]
    assert losses[0] == losses[1]


def test_losses_are_float32_under_bf16():
    logits = torch.randn(4, 6, dtype=torch.bfloat16)
    assert DistillLoss()(logits, logits, torch.tensor([0, 1, 2, 3]))["loss"].dtype == torch.float32


def test_a_negative_weight_is_refused():
    with pytest.raises(UserError, match="DistillConfig: distill_weight=-0.5; expected a finite number of at least 0"):
        DistillConfig(distill_weight=-0.5)


def test_the_teachers_weights_are_cast_once_and_its_answers_are_those_of_autocast():
    """And again when they have changed; biases and what is no linear layer stay as they are."""
    teacher, images = toy_model(seed=3), torch.randn(4, 3, 4, 4)
    loss, logits, targets = DistillLoss(teacher), torch.randn(4, CLASSES), torch.arange(4)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            expected = teacher(images)
            loss(images, logits, targets)
            got, cast = loss._ask(images), loss._in_autocasts_type("cpu")
            assert loss._in_autocasts_type("cpu") is cast
        assert torch.equal(got, expected.float())
        assert [p.dtype for p in cast.parameters()] == 2 * [torch.bfloat16, torch.float32]
        with torch.no_grad():
            teacher[1].weight.add_(1)
    assert teacher[1].weight.dtype == torch.float32
    assert torch.equal(loss._ask(images), teacher(images))
