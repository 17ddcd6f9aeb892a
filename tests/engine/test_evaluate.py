from __future__ import annotations

import pytest
import torch
from torch import nn

from rmeeto import MergeConfig
from rmeeto.engine import evaluate
from rmeeto.engine.dist import RankError
from rmeeto.engine.evaluate import rank_errors
from rmeeto.errors import UserError
from tests.engine.toy import ToyData, cpu, toy_model


class Batches:
    """Evaluation batches from a list."""

    def __init__(self, batches):
        self.batches = batches

    def eval_batches(self):
        return iter(self.batches)

    def report(self):
        return {"unreadable_train": 0, "unreadable_eval": 0}


def test_counts_are_exact():
    logits = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6]] * 4)  # ranked 6, 5, 4, 3, 2 | 1, 0
    targets = torch.tensor([6, 2, 1, 5])
    result = evaluate(nn.Identity(), Batches([(logits[:3], targets[:3]), (logits[3:], targets[3:])]), cpu())
    assert (result["top1"], result["top5"], result["count"], result["unreadable"]) == (25.0, 75.0, 4, 0)
    expected = nn.functional.cross_entropy(logits.double(), targets)
    assert result["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_top5_of_three_classes_is_top3():
    logits = torch.eye(3)
    result = evaluate(nn.Identity(), Batches([(logits, torch.tensor([0, 0, 0]))]), cpu())
    assert result["top5"] == 100.0 and result["top1"] == pytest.approx(100 / 3)


def test_an_unreadable_image_is_reported_and_counts_as_wrong():
    model = toy_model()
    whole = evaluate(model, ToyData(num_eval=20), cpu())
    images, targets = (torch.cat(parts) for parts in zip(*ToyData(num_eval=20).eval_batches()))
    right = (model(images).argmax(1) == targets).nonzero().flatten().tolist()
    missing = evaluate(model, ToyData(num_eval=20, unreadable=right[:1]), cpu())
    assert (missing["count"], missing["unreadable"]) == (20, 1)
    assert missing["top1"] == pytest.approx(whole["top1"] - 5)


def test_evaluation_uses_no_dropout_and_leaves_the_mode_alone():
    model = toy_model(dropout=0.9).train()
    assert evaluate(model, ToyData(), cpu()) == evaluate(model, ToyData(), cpu())
    assert model.training and not model.eval().training
    evaluate(model, ToyData(), cpu())
    assert not model.training


def test_on_a_cpu_each_thread_takes_its_samples_alone(two_threads):
    class Watched(nn.Module):
        def forward(self, x):
            seen.append((len(x), torch.get_num_threads()))
            return model(x)

    model, seen = toy_model(), []
    whole = evaluate(Watched(), ToyData(num_eval=20), cpu())
    assert seen and {threads for _, threads in seen} == {1} and sum(samples for samples, _ in seen) == 20
    torch.set_num_threads(1)
    assert whole == pytest.approx(evaluate(model, ToyData(num_eval=20), cpu()))


def test_an_order_drawn_by_lot_is_one_for_the_batch_on_any_number_of_threads(two_threads):
    class Shuffling(nn.Module):
        merge_config = MergeConfig(shuffle="random", shuffle_rate=0.5)

        def forward(self, x):
            drawn.append((len(x), torch.rand(()).item()))
            return model(x)

    model, drawn = toy_model(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        evaluate(Shuffling(), ToyData(num_eval=20), cpu())
    half = len(drawn) // 2
    assert half and drawn[:half] == drawn[half:]


def test_an_evaluation_that_fails_leaves_the_mode_alone():
    def full():
        raise OSError("disk")

    model = toy_model().train()
    with pytest.raises(OSError, match="disk"):
        evaluate(model, ToyData(), cpu(), after_batch=full)
    assert model.training


def test_outputs_that_are_not_finite_are_an_error():
    bad = [(torch.full((2, 3), float("nan")), torch.tensor([0, 1]))]
    with pytest.raises(UserError, match="not finite in evaluation"):
        evaluate(nn.Identity(), Batches(bad), cpu())


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(UserError, match="no image could be read"):
        evaluate(nn.Identity(), Batches([]), cpu())


def test_errors_of_one_of_several_processes_say_which():
    def broken():
        yield 1
        raise UserError("disk on fire")

    with pytest.raises(RankError, match="rank 1: disk on fire"):
        list(rank_errors(broken(), cpu(rank=1, size=2)))
    with pytest.raises(UserError, match="^disk on fire"):
        list(rank_errors(broken(), cpu()))
