"""Feature maps of merged models: on the full grid, in timm's formats."""

import pytest
import timm
import torch

import image_task.models  # noqa: F401  (registers the models)
from image_task.models import Deit, VideoMamba, Vim
from rmeeto import MergeConfig, apply
from rmeeto.nn.features import class_first, take_indices, to_map
from tests.golden_data import fill, randn

SIZE = {"img_size": (32, 48), "patch_size": 8, "num_classes": 5}  # a grid of 4 x 6


def vim(merge=None):
    return fill(Vim(**SIZE, stride=8, embed_dim=16, depth=5, merge=merge)).eval()


def videomamba(merge=None):
    return fill(VideoMamba(**SIZE, embed_dim=16, depth=5, merge=merge)).eval()


def deit(merge=None):
    return fill(Deit(**SIZE, embed_dim=24, depth=5, merge=merge)).eval()


@pytest.fixture(params=[vim, videomamba, deit])
def make(request):
    return request.param


@pytest.fixture
def x():
    return randn(7, (2, 3, 32, 48))


def test_maps_have_the_full_grid_dense_and_merged(make, x):
    for merge in (None, MergeConfig(r=4)):
        model = make(merge)
        tokens, maps = model.forward_intermediates(x, indices=[0, 2, -1])
        assert [tuple(m.shape) for m in maps] == [(2, model.embed_dim, 4, 6)] * 3
        assert torch.equal(tokens, model.forward_features(x))
        _, flat = model.forward_intermediates(x, indices=[0, 2, -1], output_fmt="NLC")
        assert torch.equal(flat[1].transpose(1, 2).reshape(maps[1].shape), maps[1])


def test_dense_maps_are_the_blocks_outputs(x):
    model = vim()
    tokens, maps = model.forward_intermediates(x, norm=True, output_fmt="NLC")
    assert len(maps) == 5 and torch.equal(maps[-1], tokens[:, 1:])
    hidden = model.encode(x).hidden
    assert torch.equal(maps[-1], torch.cat([hidden[:, :12], hidden[:, 13:]], dim=1))


@pytest.mark.parametrize(
    "config",
    [
        MergeConfig(r=4),
        MergeConfig(r=4, odd=True, keep_order=False, class_position="exact"),
        MergeConfig(r=3, interval=1, metric="delta"),
        MergeConfig(r=4, shuffle="odd-even"),
        MergeConfig(r=4, prune=True),
    ],
    ids=["default", "unordered", "every_block", "shuffled", "prune"],
)
def test_a_patch_has_the_value_of_the_token_that_it_is_part_of(config, x):
    model = vim(config)
    state = model.encode(x, trace=True)
    expected = torch.einsum("bkc,bkl->blc", state.hidden, state.source)
    patches = torch.cat([expected[:, :12], expected[:, 13:]], dim=1)
    kept = state.source.sum(1)
    kept = torch.cat([kept[:, :12], kept[:, 13:]], dim=1).bool()
    _, (last,) = model.forward_intermediates(x, indices=1, norm=True, output_fmt="NLC")
    torch.testing.assert_close(last[kept], patches[kept])
    assert kept.all() or config.prune


def test_a_pruned_patch_takes_a_survivors_value(x):
    model = vim(MergeConfig(r=4, prune=True))
    tokens, (last,) = model.forward_intermediates(x, indices=1, norm=True, output_fmt="NLC")
    for sample in range(2):
        distances = torch.cdist(last[sample], tokens[sample])
        assert (distances.min(dim=1).values == 0).all()


def test_the_class_token_comes_with_the_map(make, x):
    model = make(MergeConfig(r=4))
    tokens, ((_, prefix),) = model.forward_intermediates(x, indices=1, norm=True, return_prefix_tokens=True)
    assert torch.equal(prefix, tokens[:, :1])
    assert torch.equal(model(x), model.forward_head(tokens))


def test_without_unmerging_there_are_as_many_tokens_as_are_left(make, x):
    model = make(MergeConfig(r=4))
    maps = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True, unmerge=False)
    left = [25 - 4 * merges for merges in ([1, 2, 3, 4, 5] if make is deit else [0, 0, 1, 1, 2])]
    assert [m.shape[1] for m in maps] == [count - 1 for count in left]
    with pytest.raises(ValueError, match='4 of|unmerge=True, or output_fmt="NLC"'):
        model.forward_intermediates(x, unmerge=False)


def test_stopping_early_runs_no_block_behind_the_last_one_taken(make, x):
    model = make(MergeConfig(r=4))
    blocks = model.blocks if make is deit else model.layers
    full = model.forward_intermediates(x, indices=[1, 2], intermediates_only=True)
    blocks[3].forward = None
    stopped = model.forward_intermediates(x, indices=[1, 2], intermediates_only=True, stop_early=True)
    assert all(torch.equal(a, b) for a, b in zip(full, stopped, strict=True))


def test_pruned_layers_give_the_same_maps(make, x):
    config = MergeConfig(r=(4,) * 5) if make is deit else MergeConfig(r=(4, 2), final_tokens=9)
    model = make(config)
    full = model.forward_intermediates(x, indices=[1, 2], intermediates_only=True)
    assert model.prune_intermediate_layers([1, -3], prune_norm=True) == [1, 2]
    pruned = model.forward_intermediates(x, indices=[1, 2], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(full, pruned, strict=True))
    assert len(model.num_tokens) == 3 and model.num_classes == 0


@pytest.mark.parametrize("name", ["vim_nano_patch2_16", "videomamba_tiny_patch16_224", "rmeeto_deit_tiny_patch16_224"])
def test_features_only_gives_timms_feature_extractor(name):
    model = timm.create_model(
        name, features_only=True, out_indices=[0, 2], img_size=32, depth=4, merge=MergeConfig(r=2)
    )
    assert model.feature_info.channels() == [model.model.embed_dim] * 2
    reduction = model.feature_info.reduction()
    maps = model(randn(1, (1, 3, 32, 32)))
    assert [m.shape[-1] for m in maps] == [32 // r for r in reduction]
    sum(m.sum() for m in maps).backward()
    unused = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused  # nothing that DDP would wait for


def test_a_patched_vision_transformer_has_maps(x):
    dense = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), patch_size=8, depth=2, num_classes=5)
    expected = dense.eval().forward_intermediates(x, indices=[1], intermediates_only=True)
    maps = apply(dense, MergeConfig(r=4)).forward_intermediates(x, indices=[1], intermediates_only=True)
    assert maps[0].shape == expected[0].shape and not torch.equal(maps[0], expected[0])


def test_training_gradients_reach_every_block_through_a_map(make, x):
    model = make(MergeConfig(r=4)).train()
    (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
    last.square().sum().backward()
    blocks = model.blocks if make is deit else model.layers
    assert all(p.grad is not None for block in blocks for p in block.parameters())


def test_what_cannot_be_asked_for_is_one_error(make, x):
    model = make(MergeConfig(r=4))
    for indices in (6, [5], [-6], []):
        with pytest.raises(ValueError, match="indices="):
            model.forward_intermediates(x, indices=indices)
    with pytest.raises(ValueError, match="output_fmt='NHWC'; expected one of"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_indices_count_from_either_end():
    assert take_indices(4, None) == ([0, 1, 2, 3], 3)
    assert take_indices(4, 2) == ([2, 3], 3)
    assert take_indices(4, (0, -2)) == ([0, 2], 2)


def test_a_video_map_has_its_frames_before_its_rows():
    patches = torch.arange(24.0).reshape(1, 24, 1)
    assert torch.equal(to_map(patches, (2, 3, 4), "NCHW"), torch.arange(24.0).reshape(1, 1, 2, 3, 4))


def test_class_first_with_a_position_per_sample():
    tokens = torch.arange(8.0).reshape(2, 4, 1)
    assert class_first(tokens, torch.tensor([0, 2]))[..., 0].tolist() == [[0, 1, 2, 3], [6, 4, 5, 7]]
    assert class_first(tokens, 3)[0, :, 0].tolist() == [3, 0, 1, 2]
