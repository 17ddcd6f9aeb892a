"""Vim, dense and merged, against the recorded models."""

import json

import numpy as np
import pytest
import timm
import torch

import image_task.models  # noqa: F401  (registers the models)
from image_task.models import Vim
from rmeeto.merge import MergeConfig
from rmeeto.merge.released import final_tokens_from_compare, parse_choose
from tests.golden_data import FOLDER, Case, assert_near, fill, names, randn

SIZES = {"tiny": 192, "small": 384, "base": 768}
FULL = [name for name in names("full_image.npz") if name.startswith("vim")]


def merge_config(c: dict) -> MergeConfig | None:
    """The merge settings of a recorded case."""
    if not c["merge"]:
        return None
    shuffled = c["model"] == "vim_shuffle"
    return MergeConfig(
        r=c["num_prune"],
        interval=c["merge_interval"],
        odd=c["if_merge_odd"],
        metric=c["metric"],
        distance=c["distance"],
        mode=c.get("merge_mode", "sum"),
        neighbour=parse_choose(c.get("choose", "max")),
        prune=c["if_prune"],
        keep_order=c["if_order"],
        final_tokens=final_tokens_from_compare(c["compare"]) if c.get("last_layer_override") else None,
        shuffle="random" if shuffled else None,
        shuffle_rate=c["shuffle_rate"] if shuffled else 0.0,
        released_flip=True,
    )


def recorded_vim(c: dict) -> Vim:
    model = Vim(
        img_size=c["img_size"],
        patch_size=c["patch_size"],
        stride=c["patch_size"],
        embed_dim=c.get("embed_dim") or SIZES[c["size"]],
        depth=c["depth"],
        d_state=c["d_state"],
        num_classes=c["num_classes"],
        drop_path_rate=c["drop_path_rate"],
        merge=merge_config(c),
    )
    return fill(model).eval()


def check(file: str, name: str, bound: float) -> None:
    case = Case(file, name)
    c = case.config
    model = recorded_vim(c)
    x = randn(c["key"], (c["batch"], 3, c["img_size"], c["img_size"]))
    if "torch_seed" in c:
        torch.manual_seed(c["torch_seed"])
    with torch.no_grad():
        assert_near(model(x), case["logits"], bound, "logits")
    assert model.num_tokens == case["tokens"].tolist()
    if "source" in case:
        with torch.no_grad():
            state = model.encode(x, trace=True)
        assert np.array_equal(state.source.numpy(), case["source"])
    if not c.get("grad"):
        return
    model.train()
    logits = model(x)
    assert_near(logits, case["logits_train"], bound, "logits_train")
    (logits * randn(c["key"] + 1, tuple(logits.shape))).sum().backward()
    parameters = dict(model.named_parameters())
    for output in case.outputs():
        if output.startswith("grad/"):
            assert_near(parameters[output.removeprefix("grad/")].grad, case[output], 5e-4, output)


@pytest.mark.parametrize("name", names("vim_small.npz"))
def test_small_vim_equals_the_recorded_one(name):
    check("vim_small.npz", name, 1e-4)


@pytest.mark.parametrize("name", names("vim_shuffle_small.npz"))
def test_shuffled_vim_equals_the_recorded_one(name):
    check("vim_shuffle_small.npz", name, 1e-4)


@pytest.mark.parametrize("name", FULL)
def test_full_size_vim_equals_the_recorded_one(name):
    check("full_image.npz", name, 5e-4)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_state_dict_has_the_official_keys_and_shapes(size):
    recorded = json.loads((FOLDER / "state_dict_keys.json").read_text())[f"vim_{size}"]
    with torch.device("meta"):
        model = timm.create_model(f"vim_{size}_patch16_224")
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == recorded["keys"]
    assert sum(p.numel() for p in model.parameters()) == recorded["total_parameters"]
