"""Video models: names, sizes, weights of other models, recomputed activations."""

import json

import pytest
import timm
import torch

from rmeeto import nn as rmeeto_nn
from rmeeto.errors import UserError
from rmeeto.hub import export, load
from rmeeto.merge import MergeConfig
from rmeeto.nn.layers import PatchEmbed
from video_task.models import ALIASES, MODELS, VideoMamba, load_weights
from video_task.models.videomamba import resize_temporal
from video_task.models.weights import read_head_map

SMALL = {"embed_dim": 32, "depth": 4, "img_size": 32, "patch_size": 8, "num_classes": 6, "num_frames": 4}
HEAD = ("head.weight", "head.bias")


def small(**changes) -> VideoMamba:
    torch.manual_seed(changes.pop("seed", 0))
    model = VideoMamba(**{**SMALL, **changes})
    torch.nn.init.normal_(model.temporal_pos_embedding)
    return model


def image_model(num_classes: int = 9) -> rmeeto_nn.VisionMamba:
    """What an image VideoMamba's checkpoint holds."""
    torch.manual_seed(1)
    return rmeeto_nn.VisionMamba(PatchEmbed((32, 32), 8, 8, 32), 0, 32, 4, num_classes=num_classes, average=False)


def saved(model, path):
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.mark.parametrize("name", [*MODELS, *ALIASES])
def test_every_name_makes_its_model(name):
    with torch.device("meta"):
        model = timm.create_model(name, merge=MergeConfig(r=3), drop_path_rate=0.1)
    assert isinstance(model, VideoMamba)
    assert model.merge_config == MergeConfig(r=3)
    assert model.pretrained_cfg["input_size"] == (3, *model.patch_embed.input_size)


def test_the_released_names_take_the_released_settings():
    with torch.device("meta"):
        model = timm.create_model("videomamba_R_MeeTo_small", merge_para={"num_prune": 88, "if_order": True})
    assert model.merge_config == MergeConfig(r=88)
    assert (model.embed_dim, model.depth, model.num_classes) == (384, 24, 400)
    assert (model.num_tokens[0], model.num_tokens[-1]) == (1569, 601)


@pytest.mark.parametrize(("num_frames", "tubelet_size", "img_size"), [(1, 1, 32), (4, 2, (32, 48)), (6, 1, 24)])
def test_any_frames_and_size(num_frames, tubelet_size, img_size):
    model = small(num_frames=num_frames, tubelet_size=tubelet_size, img_size=img_size, merge=MergeConfig(r=2))
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    patches = num_frames // tubelet_size * (height // 8) * (width // 8)
    assert model.num_tokens[0] == patches + 1
    assert model(torch.randn(2, 3, num_frames, height, width)).shape == (2, 6)
    assert model.pos_embed.shape[1] == (height // 8) * (width // 8) + 1


def test_feature_maps_have_frames_rows_and_columns():
    model = small(merge=MergeConfig(r=9)).eval()
    x = torch.randn(2, 3, 4, 32, 32)
    final, maps = model.forward_intermediates(x, indices=2)
    assert [tuple(feature.shape) for feature in maps] == [(2, 32, 4, 4, 4)] * 2
    assert final.shape == (2, model.num_tokens[-1], 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 5, "tubelet_size": 2}, "frames that fill whole tubelets"),
        ({"tubelet_size": 0}, "frames that fill whole tubelets"),
        ({"img_size": 4}, "at least one patch"),
        ({"merge": MergeConfig(r=2, metric="Q")}, "metric='Q'"),
    ],
)
def test_impossible_models_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VideoMamba(**{**SMALL, **changes})


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 3, 5, 32, 32), (2, 3, 4, 32, 40)])
def test_other_inputs_are_named(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 3, 4, 32, 32\)"):
        small()(torch.randn(shape))


# weights


def test_its_own_weights_load_strictly(tmp_path):
    trained, model = small(), small(seed=2)
    report = load_weights(model, saved(trained, tmp_path / "w.pth"))
    assert (report.resized, report.new) == ((), ())
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), model.state_dict().values()))


def test_embeddings_of_other_frames_and_sizes_are_resized(tmp_path):
    trained = small()
    model = small(num_frames=8, img_size=48, seed=2)
    report = load_weights(model, saved(trained, tmp_path / "w.pth"))
    assert set(report.resized) == {"pos_embed", "temporal_pos_embedding"}
    ours, theirs = model.temporal_pos_embedding, trained.temporal_pos_embedding
    torch.testing.assert_close(ours, resize_temporal(theirs, 8))
    assert torch.equal(ours[:, 0], theirs[:, 0]) and torch.equal(ours[:, -1], theirs[:, -1])
    assert torch.equal(model.pos_embed[:, 0], trained.pos_embed[:, 0])


def test_resizing_in_time_keeps_a_line():
    line = torch.arange(4.0).view(1, 4, 1)
    torch.testing.assert_close(resize_temporal(line, 8)[0, 1:-1, 0], torch.arange(0.25, 3, 0.5))


@pytest.mark.parametrize("tubelet_size", [1, 2])
def test_an_inflated_image_model_sees_a_still_clip_as_its_image(tmp_path, tubelet_size):
    image = image_model(num_classes=6).eval()
    path = saved(image, tmp_path / "w.pth")
    model = VideoMamba(**{**SMALL, "num_frames": tubelet_size, "tubelet_size": tubelet_size}).eval()
    report = load_weights(model, path)
    assert (report.resized, report.new) == (("patch_embed.proj.weight",), ("temporal_pos_embedding",))
    x = torch.randn(2, 3, 32, 32)
    clip = x.unsqueeze(2).repeat(1, 1, tubelet_size, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), image(x), atol=1e-5, rtol=1e-5)


def test_an_image_models_head_of_other_classes_is_left_out(tmp_path):
    model = small(seed=2)
    own = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_weights(model, saved(image_model(num_classes=9), tmp_path / "w.pth"))
    assert set(report.new) == {"temporal_pos_embedding", *HEAD}
    assert all(torch.equal(model.state_dict()[key], own[key]) for key in report.new)


def test_a_head_is_mapped_by_the_users_list(tmp_path):
    trained, model = small(num_classes=9), small(seed=2)
    path = saved(trained, tmp_path / "w.pth")
    order = [8, 0, 3, 3, 5, 1]
    (tmp_path / "map.json").write_text(json.dumps(order))
    report = load_weights(model, path, head_map=read_head_map(tmp_path / "map.json"))
    assert report.resized == HEAD and report.new == ()
    for key in HEAD:
        assert torch.equal(model.state_dict()[key], trained.state_dict()[key][order])


def test_a_new_head_is_the_models_own(tmp_path):
    model = small(seed=2)
    own = model.head.weight.clone()
    report = load_weights(model, saved(small(num_classes=9), tmp_path / "w.pth"), new_head=True)
    assert report.new == HEAD and torch.equal(model.head.weight, own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"head.weight \(9, 32\) for \(6, 32\)"),
        (
            {"head_map": [0, 1, 2]},
            "head_map has 3 entries up to 2; expected one for each of the model's 6 classes",
        ),
        ({"head_map": [0, 1, 2, 3, 4, 9]}, "from 0 to 8"),
        ({"head_map": [-1, 1, 2, 3, 4, 5]}, "from 0 to 8"),
    ],
)
def test_heads_that_do_not_fit_are_refused_and_the_model_is_untouched(tmp_path, options, message):
    model = small(seed=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = saved(small(num_classes=9), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_weights(model, path, **options)
    assert len(str(caught.value).splitlines()) <= 2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_wider_models_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match="mis-shaped"):
        load_weights(small(), saved(small(embed_dim=64), tmp_path / "w.pth"))


@pytest.mark.parametrize("content", ["", '{"0": 1}', "[1.5]", "[true]"])
def test_a_head_map_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(UserError, match="--head_map"):
        read_head_map(tmp_path / "map.json")


# recomputed activations


@pytest.mark.parametrize(
    "merge",
    [
        None,
        MergeConfig(r=9),
        MergeConfig(r=9, metric="B", class_position="exact"),
        MergeConfig(r=9, shuffle="random", shuffle_rate=0.5),
    ],
    ids=["dense", "X", "B", "shuffled"],
)
@pytest.mark.parametrize("num_blocks", [None, 2])
def test_recomputed_blocks_give_the_same_gradients(merge, num_blocks):
    """Drop path and the shuffle draw the same numbers again."""
    x = torch.randn(3, 3, 4, 32, 32)
    gradients = []
    for enable in (False, True):
        model = small(merge=merge, drop_path_rate=0.5).train()
        model.set_grad_checkpointing(enable, num_blocks)
        torch.manual_seed(7)
        logits = model(x)
        logits.square().sum().backward()
        gradients.append([logits, *(p.grad for p in model.parameters()), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_recomputed_blocks_keep_fewer_activations():
    def kept(num_blocks: int) -> int:
        numbers = []
        model = small(merge=MergeConfig(r=9))
        model.set_grad_checkpointing(num_blocks=num_blocks)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: numbers.append(t.numel()) or t, lambda t: t):
            model(torch.randn(2, 3, 4, 32, 32))
        return sum(numbers)

    assert kept(4) < kept(2) < kept(0)
    assert kept(4) < kept(0) / 3


def test_recomputing_can_be_switched_off_again():
    model = small()
    model.set_grad_checkpointing()
    assert model.num_recomputed == 4
    model.set_grad_checkpointing(False)
    assert model.num_recomputed == 0


def test_a_model_takes_clips_of_another_length_on_request():
    """As if it had been made for them and given the weights."""
    arguments = {"patch_size": 16, "depth": 2}
    model = small(**arguments, num_frames=8, merge=MergeConfig(r=0.1)).eval()
    model.set_num_frames(16)
    assert model.num_tokens[0] == 16 * 4 + 1 and model.input_size == (3, 16, 32, 32)
    made = small(**arguments, num_frames=16, merge=MergeConfig(r=0.1)).eval()
    made.load_state_dict(model.state_dict())
    clip = torch.randn(1, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(clip), made(clip))
    with pytest.raises(ValueError, match="num_frames=0, .*expected frames that fill whole tubelets"):
        model.set_num_frames(0)
    assert model(clip).shape == (1, 6)


def test_a_number_of_frames_that_the_merging_refuses_leaves_the_model_as_it_was(tmp_path):
    model = timm.create_model("videomamba_video_nano_patch4_32", img_size=16, depth=3, num_classes=3)
    model.merge_config = MergeConfig(r=5, neighbour=40)
    before = model.input_size, model.num_patches
    with pytest.raises(ValueError, match="neighbour=40"):
        model.set_num_frames(2)
    assert (model.input_size, model.num_patches) == before
    model.merge_config = None
    model.set_num_frames(4)
    assert load(export(model, tmp_path / "model")).input_size[-3:] == model.input_size[-3:]
