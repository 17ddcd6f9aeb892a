"""What timm asks of every registered model, of both tasks: features, channels, heads, groups, refusals."""

import json
import re

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay

import image_task.models
import video_task.models
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from tests.golden_data import fill, randn

IMAGES, VIDEOS = "vim_nano_patch2_16", "videomamba_video_nano_patch4_32"
NAMES = [*image_task.models.MODELS, *video_task.models.MODELS]
KINDS = [IMAGES, "videomamba_tiny_patch16_224", "rmeeto_deit_tiny_patch16_224", VIDEOS]


def small(name, **kwargs):
    size = 16 if name == IMAGES else 32
    heads = {"num_heads": 3} if "deit" in name else {}
    return fill(timm.create_model(name, img_size=size, embed_dim=24, depth=4, **heads, **kwargs)).eval()


@pytest.mark.parametrize("merge", [None, MergeConfig(r=1)], ids=["dense", "merged"])
@pytest.mark.parametrize("name", NAMES)
def test_every_model_gives_feature_maps(name, merge):
    model, features = (
        small(name, num_classes=5),
        small(name, merge=merge, features_only=True, out_indices=(0, 2)),
    )
    shape = model.pretrained_cfg["input_size"]
    assert features.pretrained_cfg["input_size"] == shape
    maps = features(randn(1, (2, *shape)))
    (reduction,) = set(features.feature_info.reduction())
    frames = shape[1:-2]
    grid = (
        *frames,
        *(1 + (side - model.patch_embed.proj.kernel_size[-1]) // reduction for side in shape[-2:]),
    )
    assert [tuple(m.shape) for m in maps] == [(2, 24, *grid)] * 2 and features.feature_info.channels() == [
        24,
        24,
    ]
    last = small(name, merge=merge, features_only=True)
    assert last.out_indices == [1, 2, 3]


@pytest.mark.parametrize("name", KINDS)
def test_features_are_those_of_the_model(name):
    model, features = small(name), small(name, features_only=True, out_indices=(1,))
    features.model.load_state_dict(model.state_dict(), strict=False)
    x = randn(1, (2, *model.pretrained_cfg["input_size"]))
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)
        assert torch.equal(features(x)[0], expected[0])


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", KINDS)
def test_every_model_takes_other_channels(name, channels):
    model = small(name, in_chans=channels, num_classes=5)
    shape = model.pretrained_cfg["input_size"]
    assert shape[0] == channels and model(randn(1, (2, *shape))).shape == (2, 5)
    if "deit" not in name:
        with pytest.raises(ValueError, match=rf"expected \(B, {channels}, "):
            model(randn(1, (2, 3, *shape[1:])))


def test_timm_adapts_pretrained_images_to_other_channels(tmp_path):
    model = small("videomamba_tiny_patch16_224", num_classes=5)
    image_task.models.export(model, tmp_path)
    gray = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)
    weight = model.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(gray.patch_embed.proj.weight, weight)


def test_pretrained_clips_of_other_channels_are_one_error(tmp_path):
    video_task.models.export(small(VIDEOS, num_classes=5), tmp_path)
    with pytest.raises(UserError, match="could not be loaded: .*size mismatch for patch_embed.proj.weight"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)


@pytest.mark.parametrize("content", [b"no weights at all", b""])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_pretrained_weights_that_cannot_be_read_are_one_error(file, content, tmp_path):
    image_task.models.export(small(IMAGES), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=f"^{IMAGES}: pre-trained weights could not be loaded: "):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("name", KINDS)
def test_a_merge_setting_that_does_not_exist_is_named(name):
    with pytest.raises(UserError, match=f"^{name}: merge has rr=5; expected some of r, interval, odd"):
        small(name, merge={"rr": 5})
    assert small(name, merge={"r": 1}).merge_config == MergeConfig(r=1)


MAMBAS = [name for name in KINDS if "deit" not in name]


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (
            MAMBAS,
            {"global_pool": "avg"},
            "got global_pool='avg', which it does not take; its arguments are img_size",
        ),
        (KINDS, {"width": 3}, "got width=3, which it does not take"),
        (KINDS, {"out_indices": (1,)}, r"got out_indices=\(1,\), which it does not take"),
        (
            KINDS,
            {"features_only": True, "feature_cls": "hook"},
            "got feature_cls='hook', which it does not take",
        ),
    ],
)
def test_an_argument_that_a_model_does_not_take_is_named(names, arguments, message):
    for name in names:
        with pytest.raises(UserError, match=f"^{name}: {message}"):
            timm.create_model(name, **arguments)


@pytest.mark.parametrize("rate", [2.0, 1.0, -0.1, float("nan")])
@pytest.mark.parametrize("name", KINDS)
def test_a_drop_path_rate_is_a_rate(name, rate):
    with pytest.raises(ValueError, match=re.escape(f"drop_path_rate={rate}; expected a rate in [0, 1)")):
        timm.create_model(name, drop_path_rate=rate)


@pytest.mark.parametrize("name", MAMBAS)
def test_the_class_token_is_the_pool(name):
    model = small(name, global_pool="token")
    for pool in (None, "token"):
        model.reset_classifier(3, pool)
        assert model.head.out_features == model.num_classes == 3
    with pytest.raises(ValueError, match="global_pool='avg'; its head reads the class token"):
        model.reset_classifier(5, "avg")
    assert model.num_classes == 3


@pytest.mark.parametrize("merge", [None, MergeConfig(r=1, metric="K")], ids=["dense", "merged"])
def test_deit_pools_as_timm_does(merge):
    arguments = {"img_size": 32, "embed_dim": 24, "depth": 4, "num_heads": 3}
    model = small("rmeeto_deit_tiny_patch16_224", global_pool="avg", merge=merge)
    theirs = VisionTransformer(patch_size=16, global_pool="avg", **arguments).eval()
    theirs.load_state_dict(model.state_dict())
    x = randn(1, (2, 3, 32, 32))
    assert model.global_pool == "avg" and torch.equal(model(x), theirs(x)) == (merge is None)


@pytest.mark.parametrize("name", MAMBAS)
def test_layer_decay_knows_stem_blocks_and_head(name):
    model = small(name, num_classes=5)
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay()
    )
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scale.keys() == dict(model.named_parameters()).keys()
    for key, value in scale.items():
        if key.startswith("layers."):
            layer = int(key.split(".")[1]) + 1
        else:
            # as in timm's transformers: the final norm goes with the last block
            layer = {"head": 5, "norm_f": 4}.get(key.split(".")[0], 0)
        assert value == 0.5 ** (5 - layer), key
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decay["pos_embed"] == decay["cls_token"] == 0 < decay["layers.0.mixer.in_proj.weight"]


def test_a_folder_gives_a_video_model_back(tmp_path):
    merge = MergeConfig(r=2, window=(1, 2, 2))
    arguments = {"num_frames": 4, "tubelet_size": 2, "img_size": (32, 48), "in_chans": 1, "depth": 3}
    model = fill(timm.create_model(VIDEOS, num_classes=6, merge=merge, drop_path_rate=0.1, **arguments)).eval()
    video_task.models.export(model, tmp_path)
    x = randn(1, (2, 1, 4, 32, 48))
    ours, timms = (
        video_task.models.load(tmp_path),
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
    )
    for again in (ours, timms):
        assert type(again) is video_task.models.VideoMamba and again.merge_config == merge
        assert again.pretrained_cfg["input_size"] == (1, 4, 32, 48)
        assert torch.equal(again.eval()(x), model(x))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == VIDEOS and config["pretrained_cfg"]["input_size"] == [1, 32, 48]
    video_task.models.export(ours, tmp_path / "again")
    longer = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_frames=8, num_classes=3)
    assert longer(randn(1, (1, 1, 8, 32, 48))).shape == (1, 3)


def test_a_released_video_name_is_exported_under_ours(tmp_path):
    model = timm.create_model("videomamba_R_MeeTo_tiny", depth=2, embed_dim=16, img_size=32,
                              merge_para={"num_prune": 2, "if_order": True})  # fmt: skip
    again = video_task.models.load(video_task.models.export(model, tmp_path))
    assert again.merge_config == model.merge_config == MergeConfig(r=2)
