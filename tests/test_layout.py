"""Linear weights by columns."""

from __future__ import annotations

import copy

import timm
import torch

import image_task.models  # noqa: F401  (registers the models)
from rmeeto.layout import by_columns
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
