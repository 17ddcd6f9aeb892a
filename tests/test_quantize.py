"""Linear layers in int8."""

from __future__ import annotations

import sys

import pytest
import timm
import torch
from torch import nn

import image_task.models  # noqa: F401  (registers the models)
from rmeeto.errors import UserError
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


def test_what_cannot_be_int8_is_one_error(monkeypatch):
    with pytest.raises(UserError, match="int8: the model has parameters in torch.bfloat16 on cpu; expected fp32"):
        int8(nn.Linear(2, 2).bfloat16())
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    with pytest.raises(UserError, match="int8: torch .* has no torch.ao.quantization; use a torch that has"):
        int8(nn.Linear(2, 2))
