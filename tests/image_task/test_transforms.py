"""Augmentation and evaluation transforms."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from image_task import transforms
from image_task.config import DataConfig
from image_task.transforms import eval_transform, train_transform
from rmeeto.data.augment import allow_black
from rmeeto.data.finish import batch_of
from rmeeto.data.pictures import Encoded, reduction_for
from rmeeto.data.sampler import preserved_globals, seed_globals
from rmeeto.errors import UserError
from tests.limits import run_limited
from tests.photographs import photograph

DIGITS = DataConfig(batch_size=16, num_workers=0)


@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "v0", "augmix-m9-w3", "none"])
def test_every_magnitude_of_the_recipe_survives_this_pillow(noise, aa):
    config = DataConfig(data_set="IMNET", aa=aa)
    transform = train_transform(config, 48)
    for step in transform.steps.transforms:
        for op in getattr(step, "ops", ()):
            op.prob, op.magnitude = 1.0, 10.0  # Posterize keeps 0 bits here, which Pillow 13 refuses
            assert op(noise(0)).size == (40, 30)
    for index in range(30):
        assert transform(noise(index)).shape == (3, 48, 48)


def test_evaluation_resizes_crops_and_normalises(noise):
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, normalize, pil_to_tensor, resize

    image = noise(3, (90, 70))
    resized = resize(image, int(48 / 0.75), InterpolationMode.BICUBIC)
    expected = pil_to_tensor(center_crop(resized, 48)).float() / 255
    expected = normalize(expected, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert torch.equal(eval_transform(DataConfig(data_set="IMNET", eval_crop_ratio=0.75), 48)(image), expected)


def test_small_inputs_are_cropped_from_a_padded_image_and_evaluated_whole(noise):
    config = DataConfig(data_set="CIFAR")
    steps = [type(step).__name__ for step in train_transform(config, 32).steps.transforms]
    assert steps[:2] == ["Resize", "RandomCrop"] and "RandomResizedCropAndInterpolation" not in steps
    image = noise(0, (32, 32))
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    shifted = eval_transform(config, 32)(image)
    assert all(np.corrcoef(whole[c].flatten(), shifted[c].flatten())[0, 1] > 0.9999 for c in range(3))


def test_digits_are_not_flipped_and_stay_in_range():
    steps = [type(step).__name__ for step in train_transform(DIGITS, 16).steps.transforms]
    assert "RandomHorizontalFlip" not in steps and "RandAugment" not in steps
    image = eval_transform(DIGITS, 16)(Image.new("RGB", (8, 8), (255, 0, 128)))
    assert image.amin((1, 2)).tolist() == pytest.approx([1, -1, 0], abs=0.01)


@pytest.mark.parametrize("wrong", [{"aa": "rand-z9"}, {"aa": "magic"}])
def test_an_unknown_augmentation_is_refused(wrong):
    with pytest.raises(UserError, match="--aa is .* no policy of timm"):
        train_transform(DataConfig(data_set="IMNET", **wrong), 48)


@pytest.mark.parametrize("size", [(2048, 1), (1, 2048), (6001, 3), (7, 9002)])
def test_of_a_thin_picture_only_the_middle_is_resized_which_gives_the_same(size, monkeypatch):
    transform = eval_transform(DataConfig(data_set="IMNET"), 32 + 16)
    wave = 127 + 120 * np.sin(np.add.outer(np.arange(size[1]), np.arange(size[0])) / (2 * min(size)))
    middle = Image.fromarray(wave.astype(np.uint8)).convert("RGB")
    monkeypatch.setattr(transforms, "MAX_RESIZED", 1 << 60)
    whole = transform(middle)
    monkeypatch.setattr(transforms, "MAX_RESIZED", 1)
    assert torch.allclose(transform(middle), whole, atol=0.1)  # both round to whole pixels; range 4.4


def test_pictures_of_ordinary_shapes_are_resized_whole(noise, monkeypatch):
    transform = eval_transform(DataConfig(data_set="IMNET"), 224)
    assert transform.steps.transforms[0].size == 256
    crops = []
    monkeypatch.setattr(Image.Image, "crop", lambda image, box: crops.append(box) or image)
    resize = transform.steps.transforms[0]
    for size in ((500, 375), (375, 500), (512, 1), (3, 1500)):
        resize(Image.new("RGB", size))
    assert not crops
    resize(Image.new("RGB", (514, 1)))
    assert crops == [(245, 0, 269, 1)]


def test_the_thinnest_pictures_take_neither_memory_nor_an_error(tmp_path):
    Image.fromarray(np.repeat([[0], [255]], 30_000, 1).reshape(1, -1).astype(np.uint8)).save(tmp_path / "l.jpg")
    Image.fromarray(np.zeros((1, 9_000_000), np.uint8)).save(tmp_path / "wide.png", compress_level=1)
    Image.fromarray(np.zeros((60_000, 1), np.uint8)).save(tmp_path / "high.png")
    code = (
        "import sys, torch\n"
        "from image_task.config import DataConfig\n"
        "from image_task.transforms import eval_transform, train_transform\n"
        "from rmeeto.data.pictures import decode, read_file\n"
        "for path in sys.argv[1:]:\n"
        "    image = decode(read_file(path))\n"
        "    for size in (32, 224):\n"
        "        for make in (eval_transform, train_transform):\n"
        "            pixels = make(DataConfig(data_set='IMNET', aa='none', reprob=0, color_jitter=0), size)(image)\n"
        "            assert pixels.shape == (3, size, size), pixels.shape\n"
        "            print(*(round(pixels[0, :, column].mean().item(), 1) for column in (0, -1)))\n"
    )
    names = ("l.jpg", "wide.png", "high.png")
    seen = run_limited(code, *(tmp_path / name for name in names)).splitlines()
    assert seen[2] == "-1.9 2.1" and len(seen) == 12  # black left of the middle, white right, 0.44 pixels from it
    assert set(seen[4:]) == {"-2.1 -2.1"}


# in two parts


@pytest.mark.parametrize(
    "settings",
    [{}, {"aa": "none"}, {"aa": "none", "train_interpolation": "random", "remode": "rand"}, {"recount": 3}],
)
def test_pixels_finished_later_are_those_of_timms_own_transform_bit_for_bit(noise, settings):
    from timm.data import create_transform

    config = DataConfig(data_set="IMNET", reprob=0.6, **settings)
    theirs = create_transform(
        48,
        is_training=True,
        color_jitter=config.color_jitter,
        auto_augment=None if config.aa == "none" else config.aa,
        interpolation=config.train_interpolation,
        re_prob=config.reprob,
        re_mode=config.remode,
        re_count=config.recount,
    )
    for step in theirs.transforms:
        allow_black(step)
    ours = train_transform(config, 48)
    samples, expected = [], []
    with preserved_globals():
        for index in range(24):
            seed_globals([index] * 3)
            expected.append(theirs(noise(index, (90, 70))))
            seed_globals([index] * 3)
            samples.append((*ours.pixels(noise(index, (90, 70))), index))
    images, _ = ours.finish(batch_of(samples))
    assert torch.equal(images, torch.stack(expected))


# drafts


def _photo(name, size):
    """A photograph as a JPEG of this size, not decoded yet."""
    file = io.BytesIO()
    photograph(name).resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    return Encoded(file.getvalue())


def _psnr(ours, theirs):
    return -10 * np.log10(np.mean((np.asarray(ours, float) - np.asarray(theirs, float)) ** 2) / 255**2)


@pytest.mark.parametrize(
    ("held", "wanted", "reduction"),
    [
        ((448, 448), (224, 224), 2),
        ((447, 448), (224, 224), 1),
        ((1792, 2000), (224, 224), 8),
        ((1791, 2000), (224, 224), 4),
        ((9000, 9000), (224, 224), 8),
        ((100, 100), (224, 224), 1),
    ],
)
def test_a_part_is_reduced_only_as_far_as_all_wanted_pixels_are_there(held, wanted, reduction):
    assert reduction_for(held, wanted) == reduction


@pytest.mark.parametrize("name", ["sklearn/china.jpg", "sklearn/flower.jpg"])
def test_a_draft_shows_the_same_crop_as_sharp_and_the_draws_behind_it_are_the_same(name):
    crops, reductions = {}, []
    decode = Encoded.decode

    def decoding(picture, reduction=1):
        reductions.append(reduction)
        return decode(picture, reduction)

    with preserved_globals(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(Encoded, "decode", decoding)
        for draft in ("off", "training"):
            config = DataConfig(data_set="IMNET", aa="none", color_jitter=0, reprob=0, draft=draft)
            transform = train_transform(config, 96)
            for seed in range(8):
                seed_globals([seed] * 3)
                crops[draft, seed] = transform.pixels(_photo(name, (1001, 667)))[0]
                crops[draft, seed, "next"] = random.random(), torch.rand(1).item()
    assert reductions[:8] == [1] * 8 and set(reductions[8:]) == {2, 4}
    for seed in range(8):
        assert _psnr(crops["training", seed], crops["off", seed]) > 30
        assert crops["training", seed, "next"] == crops["off", seed, "next"]


def test_crops_that_need_all_pixels_and_pictures_of_other_formats_are_the_same_with_drafts():
    def png():
        file = io.BytesIO()
        photograph("sklearn/china.jpg").save(file, "PNG")
        return Encoded(file.getvalue())

    for make, size in ((lambda: _photo("sklearn/china.jpg", (500, 375)), 224), (png, 32)):
        seen = []
        for draft in ("off", "training"):
            config = DataConfig(data_set="IMNET", aa="none", reprob=0, draft=draft)
            with preserved_globals():
                seed_globals([1, 2, 3])
                seen.append(train_transform(config, size)(make()))
        assert torch.equal(*seen)


@pytest.mark.parametrize("size", [32, 96])
def test_evaluation_is_drafted_only_where_it_is_asked_for(size):
    make = lambda: _photo("sklearn/flower.jpg", (1000, 700))  # noqa: E731
    exact, usual, drafted = (
        eval_transform(DataConfig(data_set="IMNET", draft=draft), size).steps(make())
        for draft in ("off", "training", "all")
    )
    assert torch.equal(exact, usual) and not torch.equal(exact, drafted)
    assert _psnr(drafted, exact) > 30
    plain = train_transform(DataConfig(data_set="IMNET", augment=False), size).steps(make())
    assert torch.equal(plain, drafted)
