"""Going on from checkpoints that are damaged, of another run, or gone, and from data that have changed."""

from __future__ import annotations

import copy
import math
import shutil

import pytest
import torch

from rmeeto.engine import OptimConfig, checkpoint
from rmeeto.engine.resume import FILES
from rmeeto.errors import UserError
from rmeeto.reader import DIGEST, digest
from tests.engine.test_loop import Cut, cut_at, log_of, same, train
from tests.engine.toy import ToyData

OPTIM = OptimConfig(lr=1e-2, epochs=2, accumulation=2, model_ema=True, model_ema_decay=0.9)
SETTINGS = {"optim": OPTIM, "checkpoint_every": 2}
LAST, PREVIOUS = FILES


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, **SETTINGS)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped in its second epoch: 12 micro-batches each, saved at steps 8 and 10."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Cut):
        train(folder, data=cut_at(ToyData(), 1, 11), **SETTINGS)
    assert [checkpoint.load(folder / "toy" / name)["position"]["step"] for name in FILES] == [10, 8]
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    """The run folder in a copy of `stopped`."""
    shutil.copytree(stopped / "toy", tmp_path / "toy")
    return tmp_path / "toy"


def resume(run, **settings):
    return train(run.parent, resume=True, **{**SETTINGS, **settings})


def content(run) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in (*FILES, "best.pt", "log.jsonl") if (run / name).exists()}


def first_weight(state):
    return state["model"], "1.weight"


def moment(state):
    return state["optimizer"]["state"][0], "exp_avg"


def put(find, value):
    """A damage: the entry that `find` gives is replaced by `value`, or by what `value` makes of it."""

    def damage(state):
        target, key = find(state)
        target[key] = value(target[key]) if callable(value) else value

    return damage


def of(*keys):
    """Finds the entry under some keys."""

    def find(state):
        for key in keys[:-1]:
            state = state[key]
        return state, keys[-1]

    return find


def swap(state):
    state["model"], state["model_ema"] = state["model_ema"], state["model"]


# A damage, and the entry that the refusal names; those that only the digest can tell name none.
DAMAGES = {
    "a moment of another shape": (put(moment, torch.zeros(2)), r"optimizer.state\[0\].exp_avg is float32 \(2,\)"),
    "a moment of another type": (put(moment, torch.Tensor.half), r"optimizer.state\[0\].exp_avg is float16"),
    "a moment that is none": (put(moment, 3), r"optimizer.state\[0\].exp_avg is 3"),
    "a moment that is not finite": (put(moment, lambda t: t + math.nan), r"optimizer.state\[0\].exp_avg is not finite"),
    "negative squares": (put(of("optimizer", "state", 1, "exp_avg_sq"), lambda t: t - 1), "exp_avg_sq is negative"),
    "no step": (put(of("optimizer", "state", 1, "step"), torch.tensor(-1.0)), "step is -1"),
    "state of no parameter": (put(of("optimizer", "state", 99), {}), r"optimizer.state\[99\]"),
    "a parameter's state without its step": (lambda s: s["optimizer"]["state"][0].pop("step"), "without step"),
    "no state": (put(of("optimizer", "state"), {}), "optimizer.state is of 0 parameters"),
    "data that are none": (put(of("data"), [1]), "data is a list; expected classes"),
    "a parameter without state": (lambda s: s["optimizer"]["state"].pop(1), r"optimizer.state is of \d+ parameters"),
    "no optimizer": (put(of("optimizer"), {}), "optimizer is a dict"),
    "an optimizer that is none": (put(of("optimizer"), None), "optimizer is None"),
    "groups that are none": (put(of("optimizer", "param_groups"), [3]), r"optimizer.param_groups\[0\] is 3"),
    "a rate that is none": (put(of("optimizer", "param_groups", 0, "lr"), "x"), r"param_groups\[0\].lr is x"),
    "another decay": (put(of("optimizer", "param_groups", 0, "weight_decay"), 9.0), "weight_decay is 9.0"),
    "tensors for a decay": (put(of("optimizer", "param_groups", 0, "weight_decay"), torch.ones(2)), "Boolean value"),
    "tensors for an epoch": (put(of("position", "epoch"), torch.ones(2)), "Boolean value"),
    "tensors for batches": (put(of("batches_per_epoch"), torch.ones(2)), "batches_per_epoch is a tensor"),
    "an accuracy beyond floats": (put(of("best", "top1"), 10**400), "too large"),
    "weights of another shape": (put(first_weight, torch.zeros(3)), r"model.1.weight is float32 \(3,\)"),
    "weights of half precision": (put(first_weight, torch.Tensor.half), "model.1.weight is float16"),
    "whole numbers for weights": (put(first_weight, torch.Tensor.long), "model.1.weight is int64"),
    "weights that are not finite": (put(first_weight, lambda t: t / 0), "model.1.weight is not finite"),
    "an average that is not finite": (
        put(of("model_ema", "4.bias"), lambda t: t + math.inf), "model_ema.4.bias is not finite"),
    "weights of no name": (lambda s: s["model"].update(stranger=torch.zeros(1)), "model is with stranger"),
    "weights that are missing": (lambda s: s["model"].pop("4.bias"), "model is without 4.bias"),
    "a scaler": (put(of("scaler"), {"scale": 1.0}), "scaler is with scale"),
    "an epoch as text": (put(of("position", "epoch"), "one"), "position.epoch is one"),
    "an epoch beyond the end": (put(of("position", "epoch"), 10**6), "position.epoch is 1000000"),
    "an epoch before the start": (put(of("position", "epoch"), -1), "position.epoch is -1"),
    "a batch before the start": (put(of("position", "batch"), -5), "position.batch is -5"),
    "a batch beyond the end": (put(of("position", "batch"), 10**6), "position.batch is 1000000"),
    "a batch within a step": (put(of("position", "batch"), 7), "position.batch is 7"),
    "a step of another place": (put(of("position", "step"), 3), "position.step is 3"),
    "a step that is true": (put(of("position", "step"), True), "position.step is True"),
    "no position": (put(of("position"), [1, 2, 3]), "position is a list"),
    "no accuracy": (put(of("accuracy"), {}), "accuracy is a dict"),
    "an accuracy as text": (put(of("accuracy", "ema", "top1"), "high"), "accuracy.ema.top1 is high"),
    "no best": (put(of("best"), {}), "best is a dict"),
    "a best of no weights": (put(of("best", "weights"), "mine"), "best.weights is mine"),
    "a best that is not finite": (put(of("best", "top1"), math.nan), "best.top1 is nan"),
    "a best of an epoch to come": (put(of("best", "epoch"), 2), "best.epoch is 2"),
    "processes that are none": (put(of("ranks"), [None]), r"ranks\[0\] is None"),
    "ranks that are none": (put(of("ranks"), 1), "ranks is 1"),
    "sums of other length": (put(of("ranks", 0, "means", "sums"), []), r"ranks\[0\].means is 0 sums"),
    "sums that are not finite": (put(of("ranks", 0, "means", "sums", 0), math.inf), r"ranks\[0\].means.sums"),
    "a count of another place": (put(of("ranks", 0, "means", "count"), 3), r"ranks\[0\].means.count is 3"),
    "random words that are missing": (
        put(of("ranks", 0, "rng", "python", 1), lambda words: words[:9]), r"ranks\[0\].rng is no state"),
    "random words of another kind": (
        put(of("ranks", 0, "rng", "numpy", 1), ["x"] * 624), r"ranks\[0\].rng is no state"),
    "a random place beyond the words": (put(of("ranks", 0, "rng", "numpy", 2), 10**6), "NumPy's position"),
    "random bytes of another size": (
        put(of("ranks", 0, "rng", "torch"), torch.zeros(3, dtype=torch.uint8)), r"ranks\[0\].rng is no state"),
    "no random state": (put(of("ranks", 0, "rng"), None), r"ranks\[0\].rng is no state"),
    "two equal tensors swapped": (
        lambda s: s["model"].update({"4.bias": s["model_ema"]["4.bias"], "4.weight": s["model"]["4.weight"]}), None),
    "model and average swapped": (swap, None),
    "a bit of each weight": (
        put(first_weight, lambda t: t.view(torch.int32).bitwise_xor(1 << 23).view(torch.float32)), None),
    "all of a weight": (put(first_weight, torch.zeros_like), None),
    "the lines of the log": (put(of("log_lines"), 10**9), None),
}  # fmt: skip


def damaged(run, damage, keep_digest: bool) -> None:
    """Rewrite last.pt with a damage; without its digest it is as one of before there were digests."""
    state = copy.deepcopy(checkpoint.load(run / LAST))
    before = digest(state)
    damage(state)
    torch.save({**state, DIGEST: before} if keep_digest else state, run / LAST)


@pytest.mark.parametrize("name", [name for name, (_, entry) in DAMAGES.items() if entry])
def test_a_state_that_cannot_be_is_refused_and_nothing_touched(run, name):
    damage, entry = DAMAGES[name]
    damaged(run, damage, keep_digest=False)
    (run / PREVIOUS).unlink()
    before = content(run)
    with pytest.raises(UserError, match=f"its state does not fit this one's .*{entry}") as caught:
        resume(run)
    assert "another run.name" in str(caught.value) and "\n" not in str(caught.value)
    assert content(run) == before


@pytest.mark.parametrize("name", [*list(DAMAGES)[::7], *(name for name, (_, entry) in DAMAGES.items() if not entry)])
def test_where_the_last_checkpoint_is_damaged_the_one_before_it_is_used(run, whole, name, capsys):
    damaged(run, DAMAGES[name][0], keep_digest=True)
    _, result = resume(run)
    printed = capsys.readouterr().out
    assert f"note: {run / LAST} cannot be read" in printed and "another digest" in printed
    assert f"going on from the checkpoint before it, {run / PREVIOUS}" in printed
    assert "resuming at epoch 2, micro-batch 4, step 8" in printed
    assert log_of(run.parent) == log_of(whole)
    assert (run / "result.json").read_bytes() == (whole / "toy" / "result.json").read_bytes()
    for file in (LAST, "best.pt"):
        assert same(checkpoint.load(run / file), checkpoint.load(whole / "toy" / file))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "cannot be read"),
        (lambda path: path.write_text("hello"), "cannot be read"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    ],
    ids=["gone", "cut", "text", "a folder"],
)
def test_where_there_is_no_last_checkpoint_the_one_before_it_is_used(run, whole, change, reason, capsys):
    change(run / LAST)
    if (run / LAST).is_dir():
        with pytest.raises(UserError, match="cannot be written"):
            resume(run)
        return
    resume(run)
    assert f"note: {run / LAST} {reason}" in capsys.readouterr().out
    assert log_of(run.parent) == log_of(whole)


def test_where_both_are_damaged_the_first_is_named(run):
    for name in FILES:
        (run / name).write_bytes((run / name).read_bytes()[:5000])
    with pytest.raises(UserError, match=f"{LAST} cannot be read as a checkpoint .* start anew"):
        resume(run)


def test_without_a_checkpoint_the_run_starts_anew_and_says_so(run, whole, capsys):
    for name in FILES:
        (run / name).unlink()
    before = (run / "log.jsonl").read_bytes()
    resume(run)
    assert (
        f"there is no checkpoint in {run}, so the run starts anew; the log so far is kept as" in capsys.readouterr().out
    )
    assert (run / "log.1.jsonl").read_bytes() == before
    assert log_of(run.parent) == log_of(whole)


def test_a_log_of_fewer_lines_is_named_and_goes_on(run, capsys):
    lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    (run / "log.jsonl").write_bytes(b"".join(lines[:2]) + b"half a li")
    resume(run)
    assert f"{run / 'log.jsonl'} has 2 of its 8 lines up to step 10; the others are lost" in capsys.readouterr().out
    steps = [line["step"] for line in log_of(run.parent)]
    assert steps[:2] == [2, 4] and steps[2:] and min(steps[2:]) > 10


def test_a_checkpoint_from_before_there_were_digests_goes_on(run, whole):
    state = checkpoint.load(run / LAST)
    del state["log_lines"], state["data"]
    torch.save({**state, "log_size": 10**9}, run / LAST)
    resume(run)
    assert log_of(run.parent) == log_of(whole)


def test_tensors_that_a_file_makes_of_the_same_numbers_are_counted_on_apart(run, whole):
    state = checkpoint.load(run / LAST)
    steps = [values["step"] for values in state["optimizer"]["state"].values()]
    for values in state["optimizer"]["state"].values():
        values["step"] = steps[0]  # of equal value, so the digest stays right
    checkpoint.save(run / LAST, state)
    resume(run)
    assert log_of(run.parent) == log_of(whole)


class Described(ToyData):
    """Toy data that say what they are."""

    def __init__(self, **classes):
        super().__init__()
        self.classes = classes

    def contents(self):
        return {name: [count, text] for name, (count, text) in self.classes.items()}


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"cat": (2, "x"), "dog": (3, "b")}, "class cat: other names or sizes. Put"),
        ({"cat": (2, "a"), "dog": (4, "b")}, "class dog: 3 there, 4 here. Put"),
        ({"cat": (1, "a"), "dog": (4, "b")}, "class cat: 2 there, 1 here; class dog: 3 there, 4 here. Put"),
        ({"cat": (2, "a"), "cow": (3, "b")}, "class dog: 3 there, 0 here; class cow: 0 there, 3 here. Put"),
    ],
)
def test_data_that_have_changed_are_refused_by_class_unless_asked_for(tmp_path, now, message):
    first = Described(cat=(2, "a"), dog=(3, "b"))
    with pytest.raises(Cut):
        train(tmp_path, data=cut_at(first, 1, 5), **SETTINGS)
    train_again = {"data": Described(**now), "resume": True, **SETTINGS}
    before = content(tmp_path / "toy")
    with pytest.raises(UserError, match=f"training data are not those of .*: {message}"):
        train(tmp_path, **train_again)
    assert content(tmp_path / "toy") == before
    _, result = train(tmp_path, data_changed="ok", **train_again)
    assert result["epochs"] == 2
