"""Augmentation of clips: alike for all frames, and what each step does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rmeeto.data.sampler import preserved_globals, seed_globals
from rmeeto.errors import UserError
from video_task.config import VideoDataConfig
from video_task.data.transforms import ClipMixup, TrainTransform, ViewTransform, build_finish

CONFIG = VideoDataConfig()
PLAIN = replace(CONFIG, aa="none", color_jitter=0.0, reprob=0.0)


def _frames(count=4, height=40, width=56, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def _draw(transform, frames, seed):
    with preserved_globals():
        seed_globals([seed, seed, seed])
        return transform(frames)[0]


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(PLAIN, color_jitter=0.4),
        replace(PLAIN, aa="rand-m9-mstd0.5-inc1"),
        *(replace(PLAIN, reprob=1.0, remode=mode, recount=3) for mode in ("pixel", "rand", "const")),
    ],
    ids=["recipe", "jitter", "m9", "pixel", "rand", "const"],
)
def test_all_frames_of_a_clip_are_augmented_alike(config):
    still = _frames(1).repeat(4, axis=0)
    transform = TrainTransform(config, 32, flip=True)
    clips = [_draw(transform, still, seed) for seed in range(25)]
    for clip in clips:
        assert clip.shape == (3, 4, 32, 32) and clip.dtype == torch.float32
        assert torch.equal(clip, clip[:, :1].expand_as(clip))
    assert len({clip.sum().item() for clip in clips}) == 25  # and clips differently


def test_a_draw_is_repeatable_and_random_magnitudes_reach_the_extremes():
    transform = TrainTransform(replace(PLAIN, aa="rand-m10-n4-mstd1.0-inc1-p1.0"), 32, flip=False)
    for seed in range(40):  # among them Posterize without a bit left
        assert torch.equal(_draw(transform, _frames(1), seed), _draw(transform, _frames(1), seed))


def test_the_recipe_applies_two_operations_of_about_magnitude_five():
    policy = TrainTransform(CONFIG, 32, flip=True).steps.transforms[1].transform.policy
    assert policy.num_layers == 2
    assert {op.prob for op in policy.ops} == {0.5}
    assert {(op.magnitude, op.magnitude_std) for op in policy.ops} == {(5, 0.25)}
    assert any(op.name.endswith("Increasing") for op in policy.ops)


def test_flips_can_be_left_out():
    frames = np.broadcast_to(np.linspace(0, 255, 56).astype(np.uint8)[:, None], (2, 40, 56, 3))
    for flip, directions in ((True, {-1.0, 1.0}), (False, {1.0})):
        transform = TrainTransform(PLAIN, 32, flip=flip)
        clips = [_draw(transform, frames, seed) for seed in range(20)]
        assert {torch.sign(clip[0, 0, 0, -1] - clip[0, 0, 0, 0]).item() for clip in clips} == directions


def test_erasing_fills_one_box_of_all_frames():
    frames = np.full((4, 40, 56, 3), 255, np.uint8)
    white = TrainTransform(PLAIN, 32, flip=False)(frames)[0]
    erased = _draw(TrainTransform(replace(PLAIN, reprob=1.0, remode="const"), 32, flip=False), frames, 1) == 0
    assert not (white == 0).any() and 0.01 < erased.float().mean() < 0.5
    rows, columns = erased[0, 0].any(1).nonzero(), erased[0, 0].any(0).nonzero()
    assert erased[0, 0].sum() == len(rows) * len(columns)
    assert torch.equal(erased, erased[:1, :1].expand_as(erased))


def test_values_are_normalised_as_imagenet_is():
    clip = TrainTransform(PLAIN, 32, flip=False)(np.full((2, 40, 56, 3), 255, np.uint8))[0]
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(clip, expected.view(3, 1, 1, 1).expand_as(clip), atol=1e-5)


def test_views_are_the_crops_along_the_longer_side():
    frames = _frames(3, 32, 64)
    crops = ViewTransform(PLAIN, 32, 3)(frames)
    assert crops.shape == (3, 3, 3, 32, 32)
    whole = ViewTransform(replace(PLAIN, short_side_size=32), 32, 1)(frames[:, :, 16:48])
    assert torch.equal(crops[1], whole[0])
    for crop, left in zip(crops, (0, 16, 32)):
        assert torch.equal(crop, ViewTransform(PLAIN, 32)(frames[:, :, left : left + 32])[0])
    upright = ViewTransform(PLAIN, 32, 3)(frames.swapaxes(1, 2))
    assert torch.equal(upright, crops.transpose(-1, -2))


def test_the_shorter_side_is_resized_first():
    crops = ViewTransform(replace(PLAIN, short_side_size=40), 32, 3)(_frames(2, 20, 30))
    assert crops.shape == (3, 3, 2, 32, 32)
    with pytest.raises(UserError, match="at least the input's 32"):
        ViewTransform(replace(PLAIN, short_side_size=24), 32)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix", "minmax"])
def test_mixing_treats_all_frames_alike_and_targets_accordingly(mode, kind):
    settings = {
        "mixup": {"cutmix": 0.0, "mixup": 1.0},
        "cutmix": {"mixup": 0.0},
        "minmax": {"mixup": 0.0, "cutmix": 0.0, "cutmix_minmax": (0.3, 0.7)},
    }[kind]
    mix = ClipMixup(replace(CONFIG, mixup_mode=mode, smoothing=0.0, **settings), 4, 16)
    values = torch.arange(4.0)
    clips = values.view(4, 1, 1, 1, 1).expand(4, 3, 5, 16, 16).contiguous()
    with preserved_globals():
        seed_globals([3, 3, 3])
        mixed, targets = mix(clips, torch.arange(4))
    assert mixed.shape == clips.shape and torch.allclose(targets.sum(1), torch.ones(4))
    assert torch.equal(mixed, mixed[:, :1, :1].expand_as(mixed))  # one box, all frames and channels
    assert torch.allclose(mixed.mean((1, 2, 3, 4)), targets @ values, atol=1e-4)
    assert not torch.allclose(targets, torch.eye(4))
    if kind != "mixup":
        assert set(mixed.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_mixed_targets_are_smoothed():
    targets = ClipMixup(replace(CONFIG, mixup_prob=0.0), 4, 8)(torch.zeros(2, 3, 2, 8, 8), torch.tensor([0, 1]))[1]
    assert torch.allclose(targets[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))


def test_an_augmentation_that_timm_does_not_know_is_a_user_error():
    for aa in ("rand-m5-q3", "v0"):
        with pytest.raises(UserError, match="--aa"):
            TrainTransform(replace(CONFIG, aa=aa), 32, flip=True)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_frames_cropped_one_by_one_equal_the_clip_cropped_at_once(interpolation):
    from torchvision.transforms import InterpolationMode, v2

    config = replace(PLAIN, train_interpolation=interpolation)
    crop = v2.RandomResizedCrop(24, interpolation=InterpolationMode(interpolation), antialias=True)
    for seed, (height, width) in enumerate([(40, 56), (97, 31), (24, 24), (11, 200)]):
        frames = _frames(5, height, width)[:, ::-1]
        stack = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)
        with preserved_globals():
            seed_globals([seed, seed, seed])
            expected = crop(stack)
        one_by_one = _draw(TrainTransform(config, 24, flip=False), frames, seed)
        assert torch.equal(one_by_one, build_finish().normalise(expected).transpose(0, 1))
        small = v2.functional.resize(stack, [24], antialias=True)
        top, left = ((side - 24) // 2 for side in small.shape[-2:])
        middle = build_finish().normalise(small[..., top : top + 24, left : left + 24]).transpose(0, 1)
        assert torch.equal(ViewTransform(PLAIN, 24)(frames)[0], middle)


def test_frames_too_thin_to_be_resized_are_refused():
    with pytest.raises(ValueError, match="frames of 1 x 60000, too thin for a shorter side of 224"):
        ViewTransform(PLAIN, 224).shrink(1, 60_000)
    assert TrainTransform(PLAIN, 24, flip=False)(_frames(2, 1, 60_000)).shape == (1, 3, 2, 24, 24)
