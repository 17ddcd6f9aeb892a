"""The latency-aware schedule: on a clock that knows what each pass should take, and so what it should find."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from image_task.models import Deit, Vim
from rmeeto.measure import fit_schedule
from rmeeto.measure.latency import _curve, measure_latency
from rmeeto.merge import MergeConfig, Tokens, merging_blocks


class Clock:
    """Seconds that a forward pass is said to take, from the tokens that each block really sees.

    Args:
        block: seconds of a block, from its tokens.
        merge: seconds of a merge, from the tokens that enter it.
    """

    def __init__(self, model, block=lambda tokens: 1e-3 * tokens, merge=lambda tokens: 0.0):
        self.model, self.block, self.merge, self.passes = model, block, merge, 0

    def __call__(self, run):
        seconds = []

        def after(_, arguments, output):
            entered, left = arguments[0].hidden.shape[1], output.hidden.shape[1]
            seconds.append(self.block(left) + (self.merge(entered) if left < entered else 0.0))

        handles = [layer.register_forward_hook(after) for layer in self.model.layers]
        run()
        for handle in handles:
            handle.remove()
        self.passes += 1
        return 0.01 + sum(seconds)

    def of(self, config):
        """What the model takes when it merges so."""
        before, self.model.merge_config = self.model.merge_config, config
        try:
            with torch.inference_mode():
                return self(lambda: self.model(torch.randn(1, 3, 16, 16)))
        finally:
            self.model.merge_config = before


@pytest.fixture
def model():
    """65 tokens, six blocks."""
    return small(6)


def small(depth, **arguments):
    return Vim(
        img_size=16, patch_size=2, stride=2, embed_dim=8, depth=depth, d_state=2, num_classes=2, **arguments
    ).eval()


def find(model, clock, runs=1, **target):
    return fit_schedule(model, 16, "cpu", batch_size=1, runs=runs, timer=clock, **target)


def harm(config, depth, tokens):
    """The harm that the docstring of `fit` defines."""
    total = 0.0
    for block, r in zip(merging_blocks(depth, config.interval), config.r):
        sources = (tokens - 1) // 2
        total += (depth - block) ** 2 * sum(1 + j / sources for j in range(1, r + 1))
        tokens -= r
    return total


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("ratio", [1.05, 1.2, 1.4])
def test_reaches_a_speed_up_and_does_not_overshoot(model, interval, ratio):
    model.merge_config = MergeConfig(interval=interval)
    clock = Clock(model, merge=lambda tokens: 2e-4 * tokens)
    dense = clock.of(None)
    seconds = clock.of(find(model, clock, target_ratio=ratio))
    assert 0.98 * dense / ratio <= seconds <= 1.002 * dense / ratio


def test_reaches_a_latency(model):
    clock = Clock(model)
    target = 0.8 * clock.of(None)
    assert 0.98 * target <= clock.of(find(model, clock, target_latency=target)) <= 1.002 * target


def test_times_of_a_block_and_of_a_merge_are_found(model):
    clock = Clock(model, block=lambda tokens: 1e-3 * tokens, merge=lambda tokens: 5e-3)
    latency = measure_latency(model, torch.randn(1, 3, 16, 16), MergeConfig(), 1, clock)
    per_token = (latency.block[65] - latency.block[20]) / 45
    assert float(per_token) == pytest.approx(1e-3)
    assert latency.merge.tolist() == pytest.approx([5e-3] * 66)
    assert latency.dense == pytest.approx(clock.of(None))


def test_no_faster_schedule_does_less_harm():
    model = small(4)
    model.merge_config = MergeConfig(interval=1)
    clock = Clock(model, merge=lambda tokens: 0.012)
    chosen = find(model, clock, target_ratio=1.3)
    seconds, least = clock.of(chosen), harm(chosen, 4, 65)
    for removed in itertools.product(range(0, 33, 4), repeat=3):
        left = 65
        for r in removed:
            allowed = Tokens(left, 0).limit(r) == r
            left -= r
            if not allowed or left < 8:
                break
        else:
            other = MergeConfig(r=removed, interval=1)
            assert harm(other, 4, 65) >= least - 1e-9 or clock.of(other) > seconds - 1e-9


def test_costly_merges_become_few(model):
    model.merge_config = MergeConfig(interval=1)
    counts = []
    for cost in (0.0, 0.02, 0.05):
        clock = Clock(model, merge=lambda tokens, cost=cost: cost)
        counts.append(sum(r > 0 for r in find(model, clock, target_ratio=1.25).r))
    assert counts[0] > counts[-1]
    assert counts == sorted(counts, reverse=True)


def test_blocks_that_cost_alike_at_any_length_cannot_be_made_faster(model):
    clock = Clock(model, block=lambda tokens: 0.05)
    with pytest.raises(ValueError, match=r"cannot be reached: 2 merges bring the dense 310 ms to 310 ms"):
        find(model, clock, target_ratio=1.01)


def test_an_aim_that_dense_reaches_needs_no_merge(model):
    clock = Clock(model)
    assert find(model, clock, target_ratio=1.0).r == (0, 0)
    assert find(model, clock, target_latency=10.0).r == (0, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"interval": 1, "metric": "delta", "class_position": "exact"},
        {"interval": 3, "odd": True, "distance": "l1"},
        {"interval": 1, "neighbour": 5},
        {"interval": 2, "window": (1, 3, 3)},
        {"interval": 2, "prune": True, "keep_order": False},
    ],
)
def test_all_but_r_stays_as_the_model_has_it(model, settings):
    model.merge_config = MergeConfig(r=3, **settings)
    config = find(model, Clock(model), target_ratio=1.2)
    assert config == MergeConfig(r=config.r, **settings)
    assert all(type(r) is int for r in config.r)
    assert MergeConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert model.merge_config == MergeConfig(r=3, **settings)
    assert not model.layers[0]._forward_pre_hooks
    model.merge_config = config
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 2)


def test_passes_take_turns_and_the_first_round_is_left_out(model):
    order = []

    def timer(run):
        run()
        order.append(len(order))
        return 1.0 if len(order) <= 11 else 0.01  # a first round that would spoil everything

    latency = measure_latency(model, torch.randn(1, 3, 16, 16), MergeConfig(), 2, timer)
    assert latency.dense == 0.01 and len(order) == 3 * 11


def test_curves_rise_and_keep_the_mean():
    curve = _curve([2, 4, 6], [1.0, 3.0, 2.0], 8).tolist()
    assert curve == pytest.approx([1, 1, 1, 1.75, 2.5, 2.5, 2.5, 2.5, 2.5])
    assert _curve([5], [2.0], 6).tolist() == [2.0] * 7


def test_wall_clock_by_default(model):
    config = fit_schedule(model, (16, 16), "cpu", target_latency=10.0, batch_size=2, runs=1)
    assert config.r == (0, 0)


def final_tokens(model):
    model.merge_config = MergeConfig(final_tokens=9)


def interval(model):
    model.merge_config = MergeConfig(interval=50)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, {}, "give one of the two"),
        (None, {"target_ratio": 1.2, "target_latency": 1.0}, "give one of the two"),
        (None, {"target_ratio": 0.8}, "speed-up over the dense model, 1 or more"),
        (None, {"target_ratio": float("nan")}, "speed-up"),
        (None, {"target_latency": 0.0}, "more than 0"),
        (None, {"target_ratio": 9.0}, "cannot be reached"),
        (lambda model: model.train(), {"target_ratio": 1.2}, "training mode"),
        (lambda model: model.to("meta"), {"target_ratio": 1.2}, "the model is on meta"),
        (final_tokens, {"target_ratio": 1.2}, "final_tokens=9"),
        (None, {"target_ratio": 1.2, "runs": 0}, "runs=0; expected 1 or more"),
        (interval, {"target_ratio": 1.0}, "none of 6 blocks merges with interval=50, odd=False"),
    ],
)
def test_what_cannot_be_fitted_is_named(model, change, arguments, message):
    if change is not None:
        change(model)
    with pytest.raises(ValueError, match=message):
        find(model, Clock(model), **arguments)


def test_one_block_is_too_few():
    with pytest.raises(ValueError, match="none of 1 blocks merges .* expected a model of 2 blocks or more"):
        find(small(1), None, target_ratio=1.2)


def test_models_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="got a Deit; expected a Vision Mamba"):
        fit_schedule(Deit(img_size=16, patch_size=8, embed_dim=12, depth=1).eval(), 16, "cpu", target_ratio=1.2)
    model = Vim(img_size=16, patch_size=8, stride=8, embed_dim=8, depth=6, d_state=2, num_classes=2).eval()
    with pytest.raises(ValueError, match="5 tokens are too few"):
        fit_schedule(model, 16, "cpu", target_ratio=1.2)
