"""Nothing in a forward pass or a training step waits for the GPU, and no shape depends on data.

Tensors are fake: they have shapes and a device but no values, so that `.item()`, `.tolist()`, `nonzero` and whatever
else would need a value raises. The operators are those of a GPU.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

import image_task.models  # noqa: F401  (registers the models)
from rmeeto.engine.distill import DistillLoss
from rmeeto.engine.loop import Training
from rmeeto.engine.optim import OptimConfig
from rmeeto.engine.record import RunConfig
from rmeeto.merge import MergeConfig
from tests.engine.toy import cpu
from tests.ops.triton_cases.common import use_triton

pytest.importorskip("triton")

CONFIGS = {
    "dense": None,
    "default": MergeConfig(r=4),
    "exact": MergeConfig(r=4, class_position="exact"),
    "delta": MergeConfig(r=4, metric="delta"),
    "unordered": MergeConfig(r=4, keep_order=False),
    "third neighbour": MergeConfig(r=4, neighbour=3),
    "l1, pruned": MergeConfig(r=4, distance="l1", prune=True),
    "amax": MergeConfig(r=4, mode="amax"),
    "unordered and exact": MergeConfig(r=4, keep_order=False, class_position="exact"),
    "odd-even": MergeConfig(r=4, shuffle="odd-even"),
    "odd-even and exact": MergeConfig(r=4, shuffle="odd-even", class_position="exact"),
}


@pytest.fixture
def gpu_operators(monkeypatch):
    """Of which fake tensors reach only the shapes."""
    use_triton(monkeypatch)


def model(config: MergeConfig | None) -> nn.Module:
    return timm.create_model("vim_nano_patch2_16", merge=config, drop_path_rate=0.1)


@pytest.mark.parametrize("name", ["default", "delta", "unordered and exact"])
def test_an_optimizer_step_of_the_engine_needs_no_value(name, gpu_operators, tmp_path):
    """Of two micro-batches, with the guard and clipping. (Fake tensors cannot be copied for averaged weights.)"""
    with FakeTensorMode():
        criterion = DistillLoss(model(None), 0.5, smoothing=0.1)
        optim = OptimConfig(clip_grad=1.0, accumulation=2)
        run = RunConfig(amp="bf16")
        folder = SimpleNamespace(path=tmp_path, trained_on={})
        training = Training(model(CONFIGS[name]).train(), None, criterion, optim, run, cpu(), folder)
        batch = torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
        assert training.step(iter([batch, batch]), group=2) == 8
        with pytest.raises(DataDependentOutputException):
            training.stop_if_not_finite()  # where the engine does look


@pytest.mark.parametrize("name", CONFIGS)
def test_a_forward_pass_on_a_gpu_needs_no_value_and_copies_nothing_to_it(name, gpu_operators):
    class Copies(TorchDispatchMode):
        seen: list = []

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            given = [a for a in arguments if isinstance(a, torch.Tensor)]
            if isinstance(result, torch.Tensor) and given and {a.device for a in given} != {result.device}:
                self.seen.append(function)
            return result

    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            network, images = model(CONFIGS[name]).eval(), torch.randn(4, 3, 16, 16)
        with Copies() as copies:  # what the pass makes must ask for the GPU itself
            logits = network(images)
    assert isinstance(logits, FakeTensor) and logits.device.type == "cuda"
    assert not copies.seen


@pytest.mark.parametrize("wait", [torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.nonzero, bool])
def test_what_this_looks_for_is_seen(wait):
    with FakeTensorMode(), pytest.raises((RuntimeError, DynamicOutputShapeException)):
        wait(torch.zeros(1).relu())
