"""VideoMamba on images, dense and merged, against the recorded models."""

import json

import pytest
import timm
import torch

from image_task.models import VideoMamba
from rmeeto.merge import MergeConfig
from tests.golden_data import FOLDER, Case, assert_near, fill, names, randn

SIZES = {"tiny": 192, "small": 384}
FULL = [name for name in names("full_image.npz") if name.startswith("videomamba")]


def recorded_videomamba(c: dict) -> VideoMamba:
    merge = None
    if c["merge"]:
        merge = MergeConfig(
            r=c["num_prune"],
            interval=c["merge_interval"],
            odd=c["if_merge_odd"],
            metric=c["metric"],
            distance=c["distance"],
            prune=c["if_prune"],
            keep_order=c["if_order"],
            released_flip=True,
        )
    model = VideoMamba(
        img_size=c["img_size"],
        patch_size=c["patch_size"],
        embed_dim=c.get("embed_dim") or SIZES[c["size"]],
        depth=c["depth"],
        d_state=c["d_state"],
        num_classes=c["num_classes"],
        drop_path_rate=c["drop_path_rate"],
        merge=merge,
    )
    return fill(model).eval()


def check(file: str, name: str, bound: float) -> None:
    case = Case(file, name)
    c = case.config
    model = recorded_videomamba(c)
    x = randn(c["key"], (c["batch"], 3, c["img_size"], c["img_size"]))
    with torch.no_grad():
        assert_near(model(x), case["logits"], bound, "logits")
        if "feat_tokens_tail" in case:
            assert_near(model.forward_features(x)[:, -3:], case["feat_tokens_tail"], bound, "features")
    assert model.num_tokens == case["tokens"].tolist()
    if not c.get("grad"):
        return
    model.train()
    logits = model(x)
    assert_near(logits, case["logits_train"], bound, "logits_train")
    (logits * randn(c["key"] + 1, tuple(logits.shape))).sum().backward()
    parameters = dict(model.named_parameters())
    recorded = [output for output in case.outputs() if output.startswith("grad/")]
    assert recorded
    for output in recorded:
        assert_near(parameters[output.removeprefix("grad/")].grad, case[output], 5e-4, output)


@pytest.mark.parametrize("name", names("videomamba_image_small.npz"))
def test_small_videomamba_equals_the_recorded_one(name):
    check("videomamba_image_small.npz", name, 1e-4)


@pytest.mark.parametrize("name", FULL)
def test_full_size_videomamba_equals_the_recorded_one(name):
    check("full_image.npz", name, 5e-4)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_state_dict_has_the_official_keys_and_shapes(size):
    recorded = json.loads((FOLDER / "state_dict_keys.json").read_text())[f"videomamba_image_{size}"]
    with torch.device("meta"):
        model = timm.create_model(f"videomamba_{size}_patch16_224")
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == recorded["keys"]
    assert sum(p.numel() for p in model.parameters()) == recorded["total_parameters"]
