"""Timing: what is counted, in which turn, and what is refused."""

from __future__ import annotations

import functools
import json

import pytest
import timm
import torch
from torch import nn

from image_task.models import Deit, VideoMamba, Vim
from rmeeto.measure import Timing, benchmark, speed
from rmeeto.measure.without_merging import without_merging
from rmeeto.merge import MergeConfig

BATCH = torch.zeros(4, 3, 16, 16)


class Clock:
    """Stands in for the time module: moved on by the functions that are timed."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


def vim(merge: MergeConfig | None = None) -> Vim:
    torch.manual_seed(0)
    return Vim(16, 4, 4, embed_dim=16, depth=4, num_classes=3, merge=merge).eval()


def test_a_timing_is_a_median_with_its_quartiles():
    timing = Timing((0.1, 0.2, 0.3, 0.4, 9.0), batch_size=6)
    assert timing.median_s == pytest.approx(0.3) and timing.spread_s == pytest.approx(0.2)
    assert timing.images_per_s == pytest.approx(20)
    values = json.loads(json.dumps(timing.to_dict()))
    assert values["latency_ms"] == pytest.approx(300) and values["runs_ms"][-1] == pytest.approx(9000)
    assert values["peak_memory_bytes"] is None and values["merging_share"] is None


def test_no_median_of_fewer_than_five():
    with pytest.raises(ValueError, match="4 timed runs are too few"):
        Timing((0.1,) * 4, batch_size=1)
    with pytest.raises(ValueError, match="runs=4; expected 5"):
        benchmark({"a": lambda x: x}, BATCH, runs=4)


def test_models_take_turns_and_the_first_changes(clock):
    order = []

    def model(name):
        def run(x):
            order.append(name)
            clock.now += 1.0

        return run

    benchmark({name: model(name) for name in "abc"}, BATCH, runs=6, warmup=2)
    assert "".join(order) == "aaa" + "bbb" + "ccc" + "abc" + "bca" + "cab" + "abc" + "bca" + "cab"


def test_slow_first_passes_are_not_counted(clock):
    passes = iter([60.0, 30.0] + [0.5] * 20)

    def model(x):
        clock.now += next(passes)

    timing = benchmark({"a": model}, BATCH, runs=5, warmup=2)["a"]
    assert timing.seconds == pytest.approx((0.5,) * 5) and timing.calls == 1
    assert timing.images_per_s == pytest.approx(8)


def test_short_passes_are_repeated_within_a_run(clock):
    count = 0

    def model(x):
        nonlocal count
        count += 1
        clock.now += 0.01

    timing = benchmark({"a": model}, BATCH, runs=5, warmup=1, min_seconds=0.095)["a"]
    assert timing.calls == 10 and count == 1 + 1 + 5 * 10
    assert timing.seconds == pytest.approx((0.01,) * 5)


def test_passes_run_in_inference_mode_under_the_autocast_asked_for():
    seen = []

    def model(x):
        seen.append((torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))

    benchmark({"a": model}, BATCH, runs=5, min_seconds=0)
    assert set(seen) == {(True, False)}
    seen.clear()
    benchmark({"a": model}, BATCH, runs=5, min_seconds=0, dtype=torch.bfloat16)
    assert set(seen) == {(True, True)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {"dense": vim().train()}}, r"dense is in training mode; call \.eval\(\)"),
        ({"models": {"dense": vim().to("meta")}}, "dense is on meta, the batch on cpu"),
        ({"cuda_graph": True}, "CUDA graphs need a CUDA device; this batch is on cpu"),
        ({"warmup": 0}, "warmup=0; expected 1"),
    ],
)
def test_what_cannot_be_timed_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        benchmark(**{"models": {"a": vim()}, "batch": BATCH, **arguments})
    assert len(str(error.value).splitlines()) <= 2


def test_by_samples_each_thread_is_timed_with_its_own(two_threads):
    seen = set()

    def model(x):
        seen.add((len(x), torch.get_num_threads()))
        return x

    benchmark({"a": model}, BATCH, runs=5, min_seconds=0)
    assert seen == {(len(BATCH), 2)}
    seen.clear()
    assert len(benchmark({"a": model}, BATCH, runs=5, min_seconds=0, by_samples=True)["a"].seconds) == 5
    assert seen == {(len(BATCH) // 2, 1)}


def test_real_models_are_timed_and_left_as_they_were():
    dense, merged = vim(), vim(MergeConfig(r=5))
    before = merged(BATCH)
    timings = benchmark({"dense": dense, "merged": merged}, BATCH, runs=5, merging=True, min_seconds=0)
    assert timings["dense"].merging_share is None
    assert timings["merged"].merging_share < 1
    for timing in timings.values():
        assert timing.batch_size == 4 and timing.peak_memory is None and min(timing.seconds) > 0
    assert torch.equal(merged(BATCH), before)


def test_the_share_of_merging_is_what_the_twin_does_not_take(clock, monkeypatch):
    class Model:
        seconds = 2.0

        def __call__(self, x):
            clock.now += self.seconds

    twin = Model()
    twin.seconds = 1.5
    monkeypatch.setattr(speed, "without_merging", lambda model: twin)
    timing = benchmark({"a": Model()}, BATCH, merging=True)["a"]
    assert timing.merging_share == pytest.approx(0.25) and timing.merging_spread == pytest.approx(0)
    assert benchmark({"a": Model()}, BATCH)["a"].merging_share is None


MERGING = {
    "vim": lambda: vim(MergeConfig(r=5, metric="B", class_position="exact")),
    "vim, class token behind the cut": lambda: VideoMamba(16, 4, embed_dim=16, depth=4, merge=MergeConfig(r=99)),
    "videomamba": lambda: VideoMamba(16, 4, embed_dim=16, depth=4, merge=MergeConfig(r=2, interval=1)),
    "deit": lambda: Deit(16, 4, embed_dim=24, depth=3, merge=MergeConfig(r=3)),
}


@pytest.mark.parametrize("kind", MERGING)
def test_the_twin_sees_the_same_tokens_and_merges_nothing(kind, monkeypatch):
    model = MERGING[kind]().eval()
    expected, before = model.num_tokens, model(BATCH)
    twin = without_merging(model)

    def refuse(*_, **__):
        raise AssertionError("the twin matched tokens")

    monkeypatch.setattr("rmeeto.merge.rules.Rule.plan", refuse)
    seen = []
    modules = [m for name, m in twin.named_modules() if name.endswith((".mixer", ".attn"))]
    for module in modules:
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    with torch.inference_mode():
        assert twin(BATCH).shape == before.shape
    assert seen == expected and len(set(seen)) > 1
    monkeypatch.undo()
    assert torch.equal(model(BATCH), before)


@pytest.mark.parametrize("kind", MERGING)
def test_the_twin_shares_the_weights(kind):
    model = MERGING[kind]().eval()
    twin = without_merging(model)
    assert {p.data_ptr() for p in twin.parameters()} == {p.data_ptr() for p in model.parameters()}


def test_the_twin_of_a_transformer_cuts_before_the_mlp():
    model = MERGING["deit"]().eval()
    twin, seen = without_merging(model), []
    for module in (m for name, m in twin.named_modules() if name.endswith(".mlp")):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    twin(BATCH)
    assert seen == [14, 11, 8]


@pytest.mark.parametrize(
    "model",
    [vim(), vim(MergeConfig()), timm.create_model("test_vit").eval(), lambda x: x],
    ids=["dense", "r = 0", "timm's", "a function"],
)
def test_what_merges_nothing_has_no_twin(model):
    assert without_merging(model) is None


def test_each_compiled_model_has_a_cache_of_its_own(monkeypatch):
    from torch._dynamo.utils import counters

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    counters.clear()
    models = {n: nn.Sequential(nn.Flatten(), nn.Linear(768, int(n))).eval() for n in "123"}
    with torch._dynamo.config.patch(recompile_limit=1):
        timings = benchmark(models, BATCH, runs=5, compile=True, min_seconds=0)
    assert counters["stats"]["unique_graphs"] == 3 and not counters["recompiles"]
    assert len(timings) == 3


@pytest.mark.slow
def test_compiled_models_are_timed():
    models = {"dense": vim(), "merged": vim(MergeConfig(r=5))}
    timings = benchmark(models, BATCH, runs=5, compile=True, merging=True, min_seconds=0)
    assert timings["merged"].merging_share < 1


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_gpu_timings_have_memory_and_graphs(cuda_graph):
    models = {"dense": vim().cuda(), "merged": vim(MergeConfig(r=5)).cuda()}
    options = {"dtype": torch.bfloat16, "cuda_graph": cuda_graph, "merging": True}
    timings = benchmark(models, BATCH.cuda(), **options)
    weights = sum(p.numel() * p.element_size() for p in models["dense"].parameters())
    assert timings["dense"].peak_memory > weights
    assert timings["merged"].merging_share < 1
