"""CUDA graphs: one error without a GPU, the same numbers with one."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext

import pytest
import timm
import torch

import image_task.models  # noqa: F401  (registers the models)
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.measure import graphed
from rmeeto.measure.graphs import Captured, Graphed


def merged_model():
    return timm.create_model("vim_nano_patch2_16", merge=MergeConfig(r=4)).eval()


def test_without_cuda_one_error_says_what_to_do():
    with pytest.raises(UserError, match="need a CUDA device; this batch is on cpu"):
        graphed(merged_model(), torch.zeros(2, 3, 16, 16))


class Stand:
    """As much of a stream and of a graph as capturing asks for."""

    def wait_stream(self, other):
        pass

    def replay(self):
        pass


@pytest.fixture
def cuda_stands_in(monkeypatch):
    for name in ("current_stream", "Stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, Stand)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())


def test_what_a_graph_works_on_lives_as_long_as_the_graph(cuda_stands_in):
    model = merged_model()
    alive = weakref.ref(model)
    batch = torch.zeros(2, 3, 16, 16)
    captured = Captured(lambda model=model: model(batch))
    del model
    gc.collect()
    assert alive() is not None and captured().shape == (2, 10)
    del captured
    gc.collect()
    assert alive() is None


def test_a_capture_that_fails_gives_back_the_stream(cuda_stands_in, monkeypatch):
    calls, left = [], []

    def run():
        calls.append(None)
        if len(calls) > 3:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "set_stream", left.append)
    with pytest.raises(RuntimeError, match="not permitted"):
        Captured(run)
    assert len(calls) == 4 and len(left) == 1


@pytest.mark.gpu
def test_a_graph_gives_the_numbers_of_the_model():
    model, batches = merged_model().cuda(), torch.randn(3, 4, 3, 16, 16, device="cuda")
    fast = graphed(model, batches[0])
    with torch.inference_mode():
        for batch in batches:
            assert torch.equal(fast(batch), model(batch))
        model.head.bias += 1
        assert torch.equal(fast(batch), model(batch))
    with pytest.raises(UserError, match="captured for"):
        fast(batches[0][:2])
    with pytest.raises(UserError, match="training mode"):
        graphed(model.train(), batches[0])


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.half(),
        lambda model: setattr(model[0], "weight", torch.nn.Parameter(torch.ones(2, 2))),
    ],
)
def test_weights_that_moved_since_the_capture_are_refused_and_those_changed_in_place_are_not(move):
    model, batch = torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.zeros(1, 2)
    fast = Graphed(lambda: "replayed", batch, model)
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
    assert fast(batch) == "replayed"
    move(model)
    with pytest.raises(UserError, match="weights have moved.*Capture it again"):
        fast(batch)
