"""Looking at what any model merged: several tokens that are no patches, other channels, other repositories' Mamba."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

import rmeeto
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.measure import draw_merged, merge_history, not_patches, trace
from rmeeto.measure.explain import Answer, picture_sheet
from tests.test_patch import UpstreamMamba

SMALL = {"img_size": 64, "depth": 2, "num_classes": 5}
PREFIXES = {
    "deit_tiny_distilled_patch16_224": 2,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_small_patch16_dinov3": 5,
    "eva02_tiny_patch14_224": 1,
    "vit_base_patch16_siglip_224": 0,
}


def merged(name: str, **arguments) -> torch.nn.Module:
    torch.manual_seed(0)
    size = 56 if "14" in name else 64
    model = timm.create_model(name, **{**SMALL, "img_size": size, **arguments})
    return rmeeto.apply(model.eval(), MergeConfig(r=4))


@pytest.mark.parametrize("name", PREFIXES)
def test_tokens_before_the_patches_are_left_aside(name):
    model = merged(name)
    size = model.patch_embed.img_size[0]
    x = torch.rand(1, 3, size, size)
    assert not_patches(model) == list(range(PREFIXES[name]))
    figure = draw_merged(x, trace(model, x), not_patches(model))
    assert f"{model.num_tokens[0]} tokens, {model.num_tokens[0] - 8} left" in figure.get_suptitle()
    steps = merge_history(model, x)
    assert [step.class_index for step in steps] == ([0, 0, 0] if PREFIXES[name] else [None] * 3)
    sheet = picture_sheet(model, x, np.ones((size, size, 3)), Answer("a.png", "vit", [("cat", 1.0)]))
    assert sheet.width > 400
    if PREFIXES[name] > 1:  # the class token alone is named: the others follow it
        assert draw_merged(x, trace(model, x), 0).axes


def test_a_patch_is_drawn_where_it_is_behind_registers():
    """Of 2 x 2 patches behind three other tokens the first two merge."""
    source = torch.zeros(6, 7)
    for row, members in zip(source, ([0], [1], [2], [3, 4], [5], [6])):
        row[members] = 1
    image = torch.zeros(1, 32, 32)
    image[:, :16, :16] = 1.0
    for aside in (range(3), 0):
        drawn = draw_merged(image, source, aside).axes[1].images[0].get_array()
        found = [float(drawn[y, x].mean()) for y, x in ((8, 8), (8, 24), (24, 8))]
        assert found == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_are_drawn_in_grey(channels):
    model = timm.create_model("vim_nano_patch2_16", in_chans=channels, depth=3, merge=MergeConfig(r=8)).eval()
    x = torch.rand(2, channels, 16, 16)
    figure = draw_merged(x, trace(model, x), model.class_index)
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, x[0].mean(0)[..., None].expand(-1, -1, 3).numpy(), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("middle", [True, False])
def test_an_applied_mamba_of_others_is_followed(middle):
    torch.manual_seed(0)
    model = UpstreamMamba(32, 8, 16, 5, 5, middle=middle).eval()
    x = torch.rand(2, 3, 32, 32)
    rmeeto.apply(model, MergeConfig(r=2))
    before = model(x)
    source = trace(model, x)
    assert source.shape == (2, 13, 17) and torch.equal(source.sum(1), torch.ones(2, 17))
    steps = merge_history(model, x)
    assert [step.num_tokens for step in steps] == [17, 15, 13] and [step.block for step in steps] == [
        -1,
        2,
        4,
    ]
    assert model.class_index == (8 if middle else 0)
    assert draw_merged(x, source, model.class_index).axes
    assert torch.equal(model(x), before) and model._record is None
    with pytest.raises(UserError, match="training mode"):
        trace(model.train(), x)
