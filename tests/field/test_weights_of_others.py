"""Weights as other programs name and keep them."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import image_task.models as models
from rmeeto.errors import UserError
from rmeeto.nn.layers import resize_pos_embed
from rmeeto.weights import head_rows, load_weights


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vim_nano_patch2_16", depth=1)


@pytest.fixture
def other() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("vim_nano_patch2_16", depth=1)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "_orig_mod.module.", "module.module.", "module._orig_mod.", "model.", "backbone.", "net.",
     "encoder.", "model.backbone.", "module.model."],
)  # fmt: skip
def test_a_prefix_before_all_keys_is_taken_off(model, other, prefix, tmp_path):
    torch.save({"state_dict": {prefix + key: value for key, value in model.state_dict().items()}}, tmp_path / "x.pth")
    load_weights(other, tmp_path / "x.pth")
    assert same(model, other) and head_rows(tmp_path / "x.pth") == 10


def test_a_backbone_beside_its_head(model, other, tmp_path):
    state = {key if key.startswith("head.") else f"backbone.{key}": value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    load_weights(other, tmp_path / "x.pth")
    assert same(model, other) and head_rows(tmp_path / "x.pth") == 10
    torch.save({key: value for key, value in state.items() if "head" not in key}, tmp_path / "x.pth")
    assert head_rows(tmp_path / "x.pth") is None


@pytest.mark.parametrize(
    "entry",
    ["model", "state_dict", "model_state_dict", "net", "network", "module", "teacher", "student", "ema", "model_ema",
     "state_dict_ema"],
)  # fmt: skip
def test_entries_by_their_usual_names(model, other, entry, tmp_path):
    torch.save({"epoch": 3, entry: model.state_dict()}, tmp_path / "x.pth")
    assert load_weights(other, tmp_path / "x.pth").entry == entry
    assert same(model, other) and head_rows(tmp_path / "x.pth") == 10


def test_timms_averaged_weights(model, other, tmp_path):
    torch.save({"state_dict": other.state_dict(), "state_dict_ema": model.state_dict()}, tmp_path / "x.pth")
    assert load_weights(other, tmp_path / "x.pth", ema=True).entry == "state_dict_ema"
    assert same(model, other)


@pytest.mark.parametrize("name", ["x.SAFETENSORS", "pytorch_model.bin", "x.pth", "weights"])
def test_a_file_of_safetensors_by_any_name(model, other, name, tmp_path):
    save_file(model.state_dict(), tmp_path / name)
    load_weights(other, tmp_path / name)
    assert same(model, other)


def test_a_file_without_a_head_names_the_flag(model, other, tmp_path):
    torch.save({k: v for k, v in model.state_dict().items() if not k.startswith("head.")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="it has no head; train one with --delete_head"):
        load_weights(other, tmp_path / "x.pth")
    load_weights(other, tmp_path / "x.pth", new_head=True)


def test_keys_of_another_model_are_named_as_they_stand(other, tmp_path):
    torch.save({"model.fc.weight": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="unexpected: model.fc.weight"):
        load_weights(other, tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("old", "new"), [((32, 8), (16, 16)), ((8, 32), (32, 8)), ((32, 8), (64, 16)), ((16, 32), (32, 64))]
)
@pytest.mark.parametrize("way", ["timm", "load_weights"])
def test_positions_of_a_rectangle_are_resized_from_that_rectangle(old, new, way, tmp_path):
    model = timm.create_model("vim_nano_patch2_16", img_size=old, depth=1)
    nn.init.normal_(model.pos_embed)
    models.export(model, tmp_path / "m")
    if way == "timm":
        other = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True, img_size=new)
    else:
        other = timm.create_model("vim_nano_patch2_16", img_size=new, depth=1)
        load_weights(other, tmp_path / "m" / "model.safetensors")
    grids = [tuple(side // 2 for side in size) for size in (old, new)]
    expected = resize_pos_embed(model.pos_embed, grids[1], other.class_index, model.class_index, old_grid=grids[0])
    assert torch.equal(other.pos_embed, expected)
    patches = torch.cat([model.pos_embed[:, : model.class_index], model.pos_embed[:, model.class_index + 1 :]], 1)
    image = patches.reshape(1, *grids[0], -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(image, grids[1], mode="bicubic", antialias=True).flatten(2).mT
    at = other.class_index
    found = torch.cat([other.pos_embed[:, :at], other.pos_embed[:, at + 1 :]], 1)
    assert torch.allclose(found, resized, atol=1e-5)
