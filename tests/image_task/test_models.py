"""Every registered image model, and what its makers promise: small, but through the registry."""

import json

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from image_task.models import ALIASES, MODELS, Deit, VideoMamba, Vim, load_weights
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.nn import VisionMamba
from tests.golden_data import FOLDER, fill, randn

SMALL = {"img_size": 64, "num_classes": 5, "embed_dim": 24, "depth": 4}


def small(name, **kwargs):
    nano = {"img_size": 16} if "patch2" in name else {}
    heads = {"num_heads": 3} if "deit" in name else {}
    return fill(timm.create_model(name, **{**SMALL, **nano, **heads, **kwargs})).eval()


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def test_every_model_runs_dense_and_merged(name):
    dense, merged = small(name), small(name, merge=MergeConfig(r=2))
    x = randn(1, (2, *dense.pretrained_cfg["input_size"]))
    with torch.no_grad():
        assert dense(x).shape == merged(x).shape == (2, 5)
        assert not torch.equal(dense(x), merged(x))
        merged.merge_config = None
        assert torch.equal(dense(x), merged(x))
    assert list(dense.state_dict()) == list(merged.state_dict())


def test_every_model_trains_with_drop_path(name):
    model = small(name, merge=MergeConfig(r=2), drop_path_rate=0.1).train()
    torch.manual_seed(0)
    model(randn(1, (4, *model.pretrained_cfg["input_size"]))).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_every_model_takes_another_head(name):
    model = small(name)
    x = randn(1, (1, *model.pretrained_cfg["input_size"]))
    model.reset_classifier(3)
    assert model(x).shape == (1, 3) and model.get_classifier().out_features == 3
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))


def test_every_model_loads_another_resolution(name, tmp_path):
    model = small(name)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    side = 2 * model.pretrained_cfg["input_size"][-1]
    larger = small(name, img_size=side)
    assert load_weights(larger, tmp_path / "weights.pth").resized == ("pos_embed",)
    assert larger(randn(1, (1, 3, side, side))).isfinite().all()


SHAPES = {
    "vim_tiny_patch16_224": (Vim, 192, 24),
    "vim_small_patch16_224": (Vim, 384, 24),
    "vim_base_patch16_224": (Vim, 768, 24),
    "videomamba_tiny_patch16_224": (VideoMamba, 192, 24),
    "videomamba_small_patch16_224": (VideoMamba, 384, 24),
    "videomamba_middle_patch16_224": (VideoMamba, 576, 32),
    "videomamba_base_patch16_224": (VideoMamba, 768, 24),
    "rmeeto_deit_tiny_patch16_224": (Deit, 192, 12),
    "rmeeto_deit_small_patch16_224": (Deit, 384, 12),
    "rmeeto_deit_base_patch16_224": (Deit, 768, 12),
}


@pytest.mark.parametrize("name", SHAPES)
def test_full_size_models_have_the_papers_shapes(name):
    kind, width, depth = SHAPES[name]
    with torch.device("meta"):
        model = timm.create_model(name, merge=MergeConfig(r=11))
    blocks = model.blocks if kind is Deit else model.layers
    assert type(model) is kind and model.embed_dim == width and len(blocks) == depth
    assert model.num_tokens[:3] == ([197, 186, 175] if kind is Deit else [197, 197, 186])


RECORDED = {
    "vim_tiny": "vim_tiny_patch16_224",
    "vim_small": "vim_small_patch16_224",
    "videomamba_image_tiny": "videomamba_tiny_patch16_224",
    "videomamba_image_small": "videomamba_small_patch16_224",
    "deit_tiny": "rmeeto_deit_tiny_patch16_224",
    "deit_small": "rmeeto_deit_small_patch16_224",
}


@pytest.mark.parametrize("recorded", RECORDED)
def test_official_weights_fit_strictly(recorded):
    keys = json.loads((FOLDER / "state_dict_keys.json").read_text())[recorded]["keys"]
    with torch.device("meta"):
        model = timm.create_model(RECORDED[recorded], merge=MergeConfig(r=5))
        model.load_state_dict({key: torch.empty(shape) for key, shape in keys.items()}, strict=True)


@pytest.mark.parametrize("size", [64, (64, 96)])
def test_dense_deit_is_timms_own_bit_for_bit(size):
    torch.manual_seed(0)
    arguments = {"img_size": size, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
    theirs = VisionTransformer(**arguments).eval()
    x = randn(1, (2, 3, size, size) if isinstance(size, int) else (2, 3, *size))
    for merge in (None, MergeConfig(r=0)):
        ours = Deit(**arguments, merge=merge).eval()
        ours.load_state_dict(theirs.state_dict())
        assert torch.equal(ours(x), theirs(x))
        assert torch.equal(ours.forward_features(x), theirs.forward_features(x))
        pairs = zip(ours.forward_intermediates(x)[1], theirs.forward_intermediates(x)[1], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_deit_loads_by_timms_own_loader(tmp_path):
    theirs = timm.create_model("deit_tiny_patch16_224", depth=2)
    torch.save({"model": theirs.state_dict()}, tmp_path / "deit.pth")
    ours = timm.create_model(
        "rmeeto_deit_tiny_patch16_224",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "deit.pth")},
        depth=2,
        num_classes=7,
        merge=MergeConfig(r=8),
    )
    state = ours.state_dict()
    assert state["head.weight"].shape == (7, 192)
    assert all(torch.equal(state[key], value) for key, value in theirs.state_dict().items() if "head" not in key)
    assert ours.pretrained_cfg["crop_pct"] == 0.9


def test_weights_that_nobody_published_are_one_error():
    with pytest.raises(UserError, match="vim_tiny_patch16_224: pre-trained weights could not be loaded: No pretrained"):
        timm.create_model("vim_tiny_patch16_224", pretrained=True, depth=1)


def test_merge_settings_may_be_a_dict_as_in_a_config_file():
    config = MergeConfig(r=(8, -0.5), metric="delta", odd=True)
    assert small("vim_tiny_patch16_224", merge=config.to_dict()).merge_config == config


@pytest.mark.parametrize("alias", ALIASES)
def test_released_names_build_our_models(alias):
    released = ALIASES[alias]
    merge_para = {} if released.dense else {"merge_para": {"num_prune": 5, "choose": "3c", "if_order": True}}
    with torch.device("meta"):
        model = timm.create_model(alias, depth=2, **merge_para)
    assert model.pretrained_cfg["architecture"] == released.model
    if released.dense:
        assert model.merge_config is None
        with pytest.raises(UserError, match="is the dense teacher"):
            timm.create_model(alias, merge_para={"num_prune": 5})
    else:
        assert (model.merge_config.r, model.merge_config.neighbour) == (5, 3)
        assert model.merge_config.shuffle == ("random" if released.shuffles else None)


@pytest.mark.parametrize("metric", ["Q", "K", "V"])
def test_a_state_space_model_has_no_queries(name, metric):
    if issubclass(MODELS[name][0], VisionMamba):
        with pytest.raises(ValueError, match=f"metric='{metric}'; a state-space model has X, B, C and delta"):
            small(name, merge=MergeConfig(metric=metric))
    else:
        assert small(name, merge=MergeConfig(r=2, metric=metric)).merge_config.metric == metric


def test_timms_own_names_stay_timms():
    assert {*MODELS, *ALIASES} <= set(timm.list_models())
    for size in ("tiny", "small", "base"):
        assert timm.model_entrypoint(f"deit_{size}_patch16_224").__module__ == "timm.models.deit"
