from __future__ import annotations

import copy
import json
import math

import pytest
import torch

from rmeeto.engine import DistillLoss, OptimConfig, checkpoint, fit, lr_at
from rmeeto.engine.loop import Criterion
from rmeeto.errors import UserError
from tests.engine.toy import CLASSES, ToyData, cpu, toy_folder, toy_model, toy_run

OPTIM = OptimConfig(lr=5e-2, min_lr=1e-3, epochs=3, accumulation=1)


def train(path, optim=OPTIM, data=None, model=None, criterion: Criterion | None = None, **run):
    """Train the toy model in `path`; returns it and the result."""
    model = model or toy_model()
    with toy_folder(path) as folder:
        result = fit(
            model,
            data or ToyData(),
            criterion or DistillLoss(),
            optim,
            toy_run(path, **run),
            cpu(),
            folder,
        )
        folder.finish(result)
    return model, result


def log_of(path) -> list[dict]:
    """The log without what a repetition would not give again."""
    lines = [json.loads(line) for line in (path / "toy" / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "process"} for line in lines]


def same(a, b) -> bool:
    """Whether two trees of tensors and values are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def test_training_learns_and_records(tmp_path):
    _, result = train(tmp_path)
    lines = log_of(tmp_path)
    assert [line["event"] for line in lines].count("train") == 3
    epochs = [line for line in lines if line["event"] == "train"]
    assert epochs[-1]["loss"] < epochs[0]["loss"] < 2
    assert result["top1"] > 90 and result["top5"] >= result["top1"]
    assert result["epochs"] == 3 and result["steps"] == 36
    assert result["best"]["top1"] == max(line["top1"] for line in lines if line["event"] == "eval")
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(2, 37, 2))
    assert any((tmp_path / "toy").glob("events.out.tfevents.*"))


def test_every_pass_is_told_to_the_watchdog(tmp_path, monkeypatch):
    """A step of many micro-batches may take longer than the watchdog has patience."""
    beats = []
    monkeypatch.setattr("rmeeto.engine.watchdog.Watchdog.beat", lambda dog: beats.append(dog))
    monkeypatch.setattr("rmeeto.engine.watchdog.Watchdog._watch", lambda dog: None)
    train(tmp_path, OptimConfig(lr=1e-2, epochs=1, accumulation=4), ToyData(total=4))
    assert len(beats) >= 2 + 4  # made, entered, and four micro-batches of the one step


def test_accumulated_micro_batches_are_one_step_on_their_mean(tmp_path):
    """Four micro-batches of 4 give the same step as one of 16, and AdamW steps once for them."""
    optim = OptimConfig(lr=1e-2, epochs=1, accumulation=4)
    accumulated, result = train(tmp_path / "a", optim, ToyData(total=4))

    big = toy_model()
    images, targets = (torch.cat(parts) for parts in zip(*ToyData(total=4).train_batches(0)))
    optimizer = torch.optim.AdamW(big.parameters(), lr=1e-2, weight_decay=0.05)
    torch.nn.functional.cross_entropy(big(images), targets).backward()
    optimizer.step()
    assert result["steps"] == 1
    for ours, expected in zip(accumulated.parameters(), big.parameters()):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_an_epochs_last_group_is_averaged_over_what_it_has(tmp_path):
    """7 micro-batches by 4: steps on 4 and on 3; SGD on the means says what the weights must be."""
    captured = []

    def criterion(images, logits, targets):
        captured.append((images, targets))
        return DistillLoss()(images, logits, targets)

    optim = OptimConfig(lr=1e-2, epochs=1, accumulation=4, weight_decay=0.0)
    model, result = train(tmp_path, optim, ToyData(total=7), criterion=criterion)
    expected = toy_model()
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.0)
    for group in (captured[:4], captured[4:]):
        images, targets = (torch.cat(parts) for parts in zip(*group))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(expected(images), targets).backward()
        optimizer.step()
    assert result["steps"] == 2
    for ours, reference in zip(model.parameters(), expected.parameters()):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_clipping_bounds_the_gradient(tmp_path):
    norms = []

    class Watched(torch.optim.AdamW):
        def step(self, *arguments, **options):
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())
            return super().step(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmeeto.engine.optim.AdamW", Watched)
        train(tmp_path / "free", OptimConfig(epochs=1))
        free = max(norms)
        norms.clear()
        train(tmp_path / "clipped", OptimConfig(epochs=1, clip_grad=0.01))
    assert free > 0.1 and max(norms) == pytest.approx(0.01, rel=1e-3)


def test_the_gradients_norm_is_logged_as_it_was_before_it_is_clipped(tmp_path):
    for name, clip in (("free", None), ("clipped", 0.01)):
        train(tmp_path / name, OptimConfig(epochs=1, clip_grad=clip))
    free, clipped = (
        [line["grad_norm"] for line in log_of(tmp_path / name) if line["event"] == "step"]
        for name in ("free", "clipped")
    )
    assert len(free) == 3 and min(free) > 0.1
    assert clipped[0] == pytest.approx(free[0], rel=0.1)


def test_a_step_says_how_fast_it_is_and_what_is_left(tmp_path):
    train(tmp_path, OptimConfig(epochs=2, accumulation=1))
    lines = [json.loads(line) for line in (tmp_path / "toy" / "log.jsonl").read_text().splitlines()]
    steps = [line["process"] for line in lines if line["event"] == "step"]
    assert all(step["images_per_s"] > 0 and 0 <= step["wait_share"] < 1 for step in steps)
    assert [step["left_s"] == 0 for step in steps] == [False] * 11 + [True]


class Cut(Exception):
    """The power failed."""


def cut_at(data: ToyData, epoch: int, batch: int) -> ToyData:
    data = copy.copy(data)
    whole = data.train_batches

    def train_batches(at, start=0):
        for index, item in enumerate(whole(at, start), start):
            if (at, index) == (epoch, batch):
                raise Cut
            yield item

    data.train_batches = train_batches
    return data


@pytest.mark.parametrize("checkpoint_every", [0, 1, 2])
@pytest.mark.parametrize("cut", [(0, 1), (0, 7), (1, 0), (2, 11)])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(tmp_path, cut, checkpoint_every):
    optim = OptimConfig(lr=1e-2, epochs=3, accumulation=2, clip_grad=1.0, model_ema=True, model_ema_decay=0.9)
    criterion = DistillLoss(toy_model(seed=3))
    settings = {"optim": optim, "criterion": criterion, "checkpoint_every": checkpoint_every}
    train(tmp_path / "whole", model=toy_model(dropout=0.3), **settings)
    with pytest.raises(Cut):
        train(tmp_path / "cut", data=cut_at(ToyData(), *cut), model=toy_model(dropout=0.3), **settings)
    torch.manual_seed(99)
    from_checkpoint = (tmp_path / "cut" / "toy" / "last.pt").exists()
    weights = toy_model(dropout=0.3, seed=7 if from_checkpoint else 0)  # what the checkpoint holds wins
    train(tmp_path / "cut", model=weights, resume=True, **settings)

    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    for name in ("last.pt", "best.pt"):
        states = [checkpoint.load(tmp_path / kind / "toy" / name) for kind in ("whole", "cut")]
        assert same(*states)
    results = [(tmp_path / kind / "toy" / "result.json").read_text() for kind in ("whole", "cut")]
    assert results[0] == results[1]


def test_a_cut_between_the_last_epoch_and_the_result_only_needs_the_result(tmp_path):
    _, result = train(tmp_path)
    (tmp_path / "toy" / "result.json").unlink()
    _, again = train(tmp_path, model=toy_model(seed=5), resume=True)
    assert again == result
    assert (tmp_path / "toy" / "result.json").exists()


@pytest.mark.parametrize(("first", "second"), [({"batch": 4}, {"total": 8})])
def test_resuming_on_other_data_is_refused(tmp_path, first, second):
    with pytest.raises(Cut):
        train(tmp_path, data=cut_at(ToyData(**first), 1, 3))
    with pytest.raises(UserError, match="1 processes with 12 batches an epoch each; here are 1 with 8"):
        train(tmp_path, data=ToyData(**second), resume=True)


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        (lambda folder: (folder / "last.pt").write_text("hello"), "no checkpoint of torch"),
        (lambda folder: (folder / "best.pt").replace(folder / "last.pt"), "has no model_ema, optimizer, "),
        (lambda folder: torch.save([1], folder / "last.pt"), "has no model, "),
    ],
    ids=["text", "best.pt", "list"],
)
def test_resuming_from_a_foreign_file_is_refused(tmp_path, foreign, message):
    train(tmp_path, OptimConfig(epochs=1))
    foreign(tmp_path / "toy")
    with pytest.raises(UserError, match=message) as caught:
        train(tmp_path, OptimConfig(epochs=1), resume=True)
    assert "another run.name" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "optim"),
    [(torch.nn.Linear(3, 3), {}), (None, {"model_ema": True})],
    ids=["another model", "without the average"],
)
def test_resuming_from_another_runs_checkpoint_is_refused(tmp_path, model, optim):
    train(tmp_path, OptimConfig(epochs=1))
    with pytest.raises(UserError, match="its state does not fit this one's.*another run.name"):
        train(tmp_path, OptimConfig(epochs=2, **optim), model=model, resume=True)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_loss_that_is_not_finite_skips_the_optimizer_step_and_stops(tmp_path, accumulation):
    optim = OptimConfig(lr=1e-2, epochs=1, accumulation=accumulation)
    settings = {"optim": optim, "checkpoint_every": 1}
    model = toy_model()
    with pytest.raises(UserError, match="not finite on rank 0 at step") as caught:
        train(tmp_path, data=ToyData(bad=[7]), model=model, **settings)
    step = 7 // accumulation + 1
    assert f"at step {step} (epoch 1" in str(caught.value)
    assert "that optimizer step was skipped" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    state = checkpoint.load(tmp_path / "toy" / "last.pt")
    assert state["position"]["step"] == step - 1
    assert same(dict(model.state_dict()), dict(state["model"]))


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_after_a_loss_that_is_not_finite_no_step_changes_the_weights(tmp_path, amp):
    """The host learns of it at the next line of the log; until then the steps are skipped on the device."""
    weights = []

    def criterion(images, logits, targets):
        weights.append(copy.deepcopy(model.state_dict()))
        return DistillLoss()(images, logits, targets)

    model = toy_model()
    with pytest.raises(UserError, match="not finite on rank 0 at step 4"):
        train(tmp_path, data=ToyData(bad=[3]), model=model, criterion=criterion, log_every=10, amp=amp)
    assert len(weights) == 10
    assert not same(weights[2], weights[3])
    assert all(same(weights[3], later) for later in [*weights[4:], dict(model.state_dict())])
    assert not (tmp_path / "toy" / "last.pt").exists()


@pytest.mark.parametrize(
    ("settings", "amp", "advice"),
    [
        ({}, "off", "Try a lower optim.lr or clip_grad=1."),
        ({"clip_grad": 1.0}, "bf16", "Try a lower optim.lr or amp='off'."),
    ],
)
def test_a_training_that_diverges_is_told_what_helps(tmp_path, settings, amp, advice):
    """One step: its loss is finite, the weights after it are too large for the evaluation."""
    optim = OptimConfig(lr=1e30, epochs=1, accumulation=1, **settings)
    with pytest.raises(UserError, match="after epoch 1 .* the training has diverged") as caught:
        train(tmp_path, optim=optim, data=ToyData(total=1), amp=amp)
    assert str(caught.value).splitlines()[1] == advice


def test_the_average_is_of_the_trained_model_and_is_evaluated_beside_it(tmp_path):
    optim = OptimConfig(lr=1e-2, epochs=2, accumulation=1, model_ema=True, model_ema_decay=0.5)
    start = copy.deepcopy(toy_model().state_dict())
    weights = []

    def criterion(images, logits, targets):
        weights.append(copy.deepcopy(model.state_dict()))
        return DistillLoss()(images, logits, targets)

    model = toy_model()
    _, result = train(tmp_path, optim, model=model, criterion=criterion)
    weights.append(copy.deepcopy(model.state_dict()))
    average = start
    for after in weights[1:]:
        average = {name: 0.5 * average[name] + 0.5 * after[name] for name in average}
    state = checkpoint.load(tmp_path / "toy" / "last.pt")
    for name, value in average.items():
        torch.testing.assert_close(state["model_ema"][name], value)

    assert result["ema"]["loss"] != result["loss"]
    lines = [line for line in log_of(tmp_path) if line["event"] == "eval" and line["epoch"] == 2]
    assert {line["weights"]: line["loss"] for line in lines} == {
        "model": result["loss"],
        "ema": result["ema"]["loss"],
    }


def test_best_weights_are_those_of_the_best_accuracy(tmp_path):
    _, result = train(tmp_path, OptimConfig(lr=0.3, min_lr=0.1, epochs=4, model_ema=True, model_ema_decay=0.8))
    best = checkpoint.load(tmp_path / "toy" / "best.pt")
    evaluations = [line for line in log_of(tmp_path) if line["event"] == "eval"]
    highest = max(evaluations, key=lambda line: line["top1"])  # the first of equals
    for source in (best, result["best"]):
        assert (source["weights"], source["epoch"], source["top1"]) == (
            highest["weights"],
            highest["epoch"],
            highest["top1"],
        )
    _, again = train(tmp_path / "again", OptimConfig(lr=1e-30, min_lr=0, epochs=1), model=_loaded(best["model"]))
    assert again["top1"] == best["top1"]


def _loaded(state) -> torch.nn.Module:
    model = toy_model()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_low_precision_trains_close_to_float32(tmp_path, amp):
    seen = []

    def criterion(images, logits, targets):
        seen.append(logits.dtype)
        return DistillLoss()(images, logits, targets)

    _, exact = train(tmp_path / "off")
    _, low = train(tmp_path / amp, criterion=criterion, amp=amp)
    assert set(seen) == {{"bf16": torch.bfloat16, "fp16": torch.float16}[amp]}
    assert low["loss"] == pytest.approx(exact["loss"], abs=0.1)
    scaler = checkpoint.load(tmp_path / amp / "toy" / "last.pt")["scaler"]
    assert bool(scaler) == (amp == "fp16")


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_a_step_on_a_loss_that_is_not_finite_is_not_done_though_its_gradients_are(tmp_path, amp):
    seen = []

    def criterion(images, logits, targets):
        seen.append(logits.detach())
        return {"loss": logits.float().pow(2).mean() + (math.inf if len(seen) == 2 else 0.0)}

    model, before = toy_model(), []
    data = ToyData()
    batches = data.train_batches

    def watched(epoch, start=0):
        for batch in batches(epoch, start):
            before.append(model[1].weight.detach().clone())
            yield batch

    data.train_batches = watched
    with pytest.raises(UserError, match="not finite"):
        train(tmp_path, data=data, model=model, criterion=criterion, amp=amp, log_every=4)
    moved = [not torch.equal(a, b) for a, b in zip(before, [*before[1:], model[1].weight])]
    assert moved[0] and not any(moved[1:])


def test_rates_in_the_log_follow_the_schedule(tmp_path):
    optim = OptimConfig(lr=1e-2, min_lr=1e-3, epochs=3, schedule="cosine")
    train(tmp_path, optim)
    rates = [line["lr"] for line in log_of(tmp_path) if line["event"] == "train"]
    assert rates == pytest.approx([1e-3 + 9e-3 * (1 + math.cos(math.pi * e / 3)) / 2 for e in range(3)])


def test_a_seed_is_all_that_a_run_depends_on(tmp_path):
    models = [train(tmp_path / str(i), model=toy_model(dropout=0.5), seed=s)[0] for i, s in enumerate((1, 1, 2))]
    weights = [model[1].weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_classes_of_the_toy_are_enough_for_top5():
    assert CLASSES > 5


@pytest.mark.parametrize("schedule", ["cosine", "iteration"])
def test_the_rate_is_that_of_the_schedule_at_every_step(tmp_path, schedule):
    """Three micro-batches a step: four steps an epoch, two log lines."""
    optim = OptimConfig(lr=1e-2, min_lr=1e-4, epochs=3, warmup_epochs=1, accumulation=3, schedule=schedule)
    train(tmp_path, optim=optim)
    logged = [line for line in log_of(tmp_path) if line["event"] in ("step", "train")]
    steps = [(line["epoch"] - 1, line["step"] - 1) for line in logged]
    assert [step for _, step in steps] == [1, 3, 3, 5, 7, 7, 9, 11, 11]
    expected = [lr_at(epoch, optim, optim.lr, step - 4 * epoch, 4) for epoch, step in steps]
    assert [line["lr"] for line in logged] == expected
    assert (len(set(expected)) == 6) == (schedule == "iteration")
