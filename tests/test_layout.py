"""Linear weights by columns, products by oneDNN, and batches by samples."""

from __future__ import annotations

import copy
from threading import Thread

import pytest
import timm
import torch
from torch.profiler import ProfilerActivity, profile

import image_task.models  # noqa: F401  (registers the models)
from rmeeto import MergeConfig
from rmeeto.layout import BySamples, OneDNNLinear, by_columns, by_onednn
from tests.forked import run
from tests.golden_data import assert_near, fill, randn


def test_weights_by_columns_are_the_same_weights():
    model = fill(timm.create_model("vim_nano_patch2_16", depth=3)).eval()
    x, state = randn(1, (2, 3, 16, 16)), copy.deepcopy(model.state_dict())
    expected = model(x).detach().numpy()
    assert by_columns(model) is model
    weight = model.layers[0].mixer.in_proj.weight
    assert weight.shape == (128, 32) and weight.stride() == (1, 128) and isinstance(weight, torch.nn.Parameter)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert_near(model(x), expected, 1e-5)
    model.load_state_dict({name: tensor * 0 for name, tensor in state.items()})
    assert weight.stride() == (1, 128) and not weight.any()


def test_onednn_multiplies_in_evaluation_alone_and_training_stays_as_it_was():
    model = fill(timm.create_model("vim_nano_patch2_16", depth=2)).eval()
    names, x = list(model.state_dict()), randn(1, (2, 3, 16, 16))
    with torch.no_grad():
        expected = model(x)
    assert by_onednn(model) is model and list(model.state_dict()) == names
    kinds = {name.rpartition(".")[2]: type(module) for name, module in model.named_modules()}
    assert kinds["in_proj"] is OneDNNLinear and kinds["dt_proj"] is torch.nn.Linear
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    assert any("mkldnn::_linear_pointwise" in event.key for event in seen.key_averages())
    model(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Watched(torch.nn.Module):
    """A model that keeps what every call saw: samples, threads of an operator, inference mode."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((len(x), torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return self.model(x)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_each_thread_takes_its_samples_through_all_layers_alone(two_threads, mode):
    model = Watched(fill(timm.create_model("vim_nano_patch2_16", depth=3, merge=MergeConfig(r=4))).eval())
    x, shared = randn(1, (5, 3, 16, 16)), BySamples(model)
    with mode():
        expected = model(x)
        found = shared(x)
    torch.testing.assert_close(found, expected)
    assert found.is_inference() == expected.is_inference()
    inference = mode is torch.inference_mode
    assert sorted(model.calls[1:]) == [(2, 1, inference), (3, 1, inference)] and torch.get_num_threads() == 2
    later = []
    other = Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start(), other.join()
    assert later == [2]  # threads of others are shared out as before


def test_what_is_shared_out_already_is_not_shared_out_twice_and_is_configured_through(two_threads):
    model, x = fill(timm.create_model("vim_nano_patch2_16", depth=3)).eval(), randn(1, (8, 3, 16, 16))
    shared = BySamples(BySamples(model, 2), 2)
    assert shared.model is model
    shared.merge_config = MergeConfig(r=9)
    with torch.no_grad():
        assert torch.equal(shared(x), model(x)) and shared.num_tokens == model.num_tokens == [65, 65, 56]


def test_one_sample_and_training_are_the_models_own(two_threads):
    model = Watched(fill(timm.create_model("vim_nano_patch2_16", depth=1)).eval())
    shared, x = BySamples(model), randn(1, (4, 3, 16, 16))
    shared(x).sum().backward()
    with torch.no_grad():
        shared(x[:1])
        with torch.autocast("cpu", torch.bfloat16):
            shared(x)
    assert [samples for samples, *_ in model.calls] == [4, 1, 4] and {threads for _, threads, _ in model.calls} == {2}
    assert model.model.head.weight.grad is not None


def test_an_error_of_a_sample_is_raised_and_a_fork_has_threads_of_its_own(two_threads):
    shared, x = BySamples(torch.nn.Linear(3, 2)), randn(1, (4, 3))
    with torch.no_grad():
        with pytest.raises(RuntimeError):
            shared(x[:, :2])
        expected = shared(x)
        assert run(1, lambda: torch.equal(shared(x), expected), timeout=20) == [True]
