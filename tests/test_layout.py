"""Linear weights by columns, and products by oneDNN."""

from __future__ import annotations

import copy

import timm
import torch
from torch.profiler import ProfilerActivity, profile

import image_task.models  # noqa: F401  (registers the models)
from rmeeto.layout import OneDNNLinear, by_columns, by_onednn
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
