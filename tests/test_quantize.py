"""Linear layers in int8."""

from __future__ import annotations

import copy
import sys

import pytest
import timm
import torch
from torch import nn

import image_task.models  # noqa: F401  (registers the models)
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.layout import by_onednn
from rmeeto.measure import count_flops
from rmeeto.quantize import int8


def test_linear_layers_are_int8_and_logits_nearly_the_same():
    torch.manual_seed(0)
    model = timm.create_model("vim_nano_patch2_16").eval()
    x = torch.randn(4, 3, 16, 16)
    try:
        quantised = int8(model)
    except UserError as reason:
        pytest.skip(str(reason))
    plain = {name for name, module in quantised.named_modules() if type(module) is nn.Linear}
    assert plain and all("dt_proj" in name for name in plain)
    assert type(model.head) is nn.Linear
    with torch.no_grad():
        expected, got = model(x), quantised(x)
    assert not torch.equal(got, expected)
    assert torch.nn.functional.cosine_similarity(got, expected).min() > 0.99


def test_layers_that_multiply_by_onednn_are_quantised_too_and_counted_alike():
    torch.manual_seed(0)
    for name in ("vim_nano_patch2_16", "rmeeto_deit_nano_patch2_28"):
        model = timm.create_model(name, merge=MergeConfig(r=5), depth=2).eval()
        size = model.pretrained_cfg["input_size"][-1]
        try:
            quantised, other = int8(model), int8(by_onednn(copy.deepcopy(model)))
        except UserError as reason:
            pytest.skip(str(reason))
        kinds = [[type(module) for module in one.modules()] for one in (quantised, other)]
        assert kinds[0] == kinds[1]
        assert count_flops(quantised, size) == count_flops(model, size)


def test_what_cannot_be_int8_is_one_error(monkeypatch):
    with pytest.raises(UserError, match="int8: the model has parameters in torch.bfloat16 on cpu; expected fp32"):
        int8(nn.Linear(2, 2).bfloat16())
    with pytest.raises(UserError, match="int8: Conv2d has no linear layer to quantise"):
        int8(nn.Conv2d(1, 1, 1))
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    with pytest.raises(UserError, match="int8: torch .* has no torch.ao.quantization; use a torch that has"):
        int8(nn.Linear(2, 2))
