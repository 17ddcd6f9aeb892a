"""DeiT, dense and merged, against the recorded models."""

import json

import pytest
import timm
import torch

from image_task.models import Deit
from rmeeto.merge import MergeConfig
from tests.golden_data import FOLDER, Case, assert_near, fill, names, randn


def recorded_deit(c: dict) -> Deit:
    merge = None
    if c["merge"]:
        merge = MergeConfig(
            r=c["num_prune"],
            metric=c["metric"],
            distance=c["distance"],
            prune=c["if_prune"],
            keep_order=c["if_order"],
        )
    model = Deit(
        c["img_size"],
        c["patch_size"],
        c["embed_dim"],
        c["depth"],
        c["num_heads"],
        c["num_classes"],
        c["layernorm_eps"],
        merge,
    )
    return fill(model).eval()


@pytest.mark.parametrize("name", names("deit_small.npz"))
def test_deit_equals_the_recorded_one(name):
    case = Case("deit_small.npz", name)
    c = case.config
    model = recorded_deit(c)
    x = randn(c["key"], (c["batch"], 3, c["img_size"], c["img_size"]))
    with torch.no_grad():
        assert_near(model(x), case["logits"], 1e-4, "logits")
    assert model.num_tokens == case["tokens"].tolist()
    if not c.get("grad"):
        return
    model.train()
    logits = model(x)
    assert_near(logits, case["logits_train"], 1e-4, "logits_train")
    (logits * randn(c["key"] + 1, tuple(logits.shape))).sum().backward()
    parameters = dict(model.named_parameters())
    for name in c["grad_params"]:
        assert_near(parameters[name].grad, case[f"grad/{name}"], 5e-4, name)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_state_dict_has_the_official_keys_and_shapes(size):
    recorded = json.loads((FOLDER / "state_dict_keys.json").read_text())[f"deit_{size}"]
    with torch.device("meta"):
        model = timm.create_model(f"rmeeto_deit_{size}_patch16_224")
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == recorded["keys"]
    assert sum(p.numel() for p in model.parameters()) == recorded["total_parameters"]
