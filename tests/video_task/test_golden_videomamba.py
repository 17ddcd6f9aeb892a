"""VideoMamba on clips, dense and merged, against the recorded models, counters and parameter names."""

import json

import pytest
import timm
import torch

from rmeeto.measure import count_flops
from rmeeto.merge import MergeConfig
from tests.golden_data import FOLDER, Case, assert_near, fill, names, randn
from video_task.models import VideoMamba

SIZES = {"tiny": 192, "small": 384}


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
        num_classes=c["num_classes"],
        drop_path_rate=c["drop_path_rate"],
        merge=merge,
        num_frames=c["num_frames"],
        tubelet_size=c["tubelet"],
    )
    return fill(model).eval()


def check(file: str, name: str, bound: float) -> None:
    case = Case(file, name)
    c = case.config
    model = recorded_videomamba(c)
    x = randn(c["key"], (c["batch"], 3, c["num_frames"], c["img_size"], c["img_size"]))
    with torch.no_grad():
        assert_near(model(x), case["logits"], bound, "logits")
    assert model.num_tokens == case["tokens"].tolist()
    if not c.get("grad"):
        return
    model.train()
    for num_recomputed in (0, 3):
        model.zero_grad()
        model.set_grad_checkpointing(num_blocks=num_recomputed)
        logits = model(x)
        assert_near(logits, case["logits_train"], bound, "logits_train")
        (logits * randn(c["key"] + 1, tuple(logits.shape))).sum().backward()
        parameters = dict(model.named_parameters())
        recorded = [output for output in case.outputs() if output.startswith("grad/")]
        assert recorded
        for output in recorded:
            assert_near(parameters[output.removeprefix("grad/")].grad, case[output], 5e-4, output)


@pytest.mark.parametrize("name", names("videomamba_video_small.npz"))
def test_small_videomamba_equals_the_recorded_one(name):
    check("videomamba_video_small.npz", name, 1e-4)


@pytest.mark.parametrize("name", names("full_video.npz"))
def test_full_size_videomamba_equals_the_recorded_one(name):
    check("full_video.npz", name, 5e-4)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_state_dict_has_the_official_keys_and_shapes(size):
    recorded = json.loads((FOLDER / "state_dict_keys.json").read_text())[f"videomamba_video_{size}_8f_k400"]
    with torch.device("meta"):
        model = timm.create_model(f"videomamba_video_{size}_patch16_224")
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == recorded["keys"]
    assert sum(p.numel() for p in model.parameters()) == recorded["total_parameters"]


COUNTED = {
    key: entry["total_G"]
    for key, entry in json.loads((FOLDER / "flops.json").read_text())["values"].items()
    if key.startswith("videomamba_video")
}


@pytest.mark.parametrize("key", COUNTED)
def test_recorded_counter_is_met_to_the_last_digit(key):
    name, r, _ = key.split("/")
    with torch.device("meta"):
        model = timm.create_model(f"{name}_patch16_224", merge=MergeConfig(r=int(r[1:])))
    assert count_flops(model, model.pretrained_cfg["input_size"]).total == round(COUNTED[key] * 1e9)


@pytest.mark.parametrize(
    ("size", "paper", "full"),
    [
        ("tiny", (11.54, 9.49), (14.52, 11.55)),
        ("small", (40.43, 30.99), (47.08, 35.59)),
        ("middle", (115.33, 71.71), (130.02, 80.22)),
    ],
)
def test_published_figures_of_both_conventions(size, paper, full):
    with torch.device("meta"):
        model = timm.create_model(f"videomamba_{size}")
    for merge, in_paper, in_full in zip((None, MergeConfig(r=88)), paper, full):
        model.merge_config = merge
        assert round(count_flops(model, (8, 224, 224)).total / 1e9, 2) == in_paper
        assert round(count_flops(model, (8, 224, 224), "full").total / 1e9, 2) == in_full
