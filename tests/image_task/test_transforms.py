"""Augmentation and evaluation transforms."""

import numpy as np
import pytest
import torch
from PIL import Image

from image_task.config import DataConfig
from image_task.transforms import eval_transform, train_transform
from rmeeto.errors import UserError

DIGITS = DataConfig(batch_size=16, num_workers=0)


@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "v0", "augmix-m9-w3", "none"])
def test_every_magnitude_of_the_recipe_survives_this_pillow(noise, aa):
    config = DataConfig(data_set="IMNET", aa=aa)
    transform = train_transform(config, 48)
    for step in transform.transforms:
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
    assert torch.equal(
        eval_transform(DataConfig(data_set="IMNET", eval_crop_ratio=0.75), 48)(image), expected
    )


def test_small_inputs_are_cropped_from_a_padded_image_and_evaluated_whole(noise):
    config = DataConfig(data_set="CIFAR")
    steps = [type(step).__name__ for step in train_transform(config, 32).transforms]
    assert steps[:2] == ["Resize", "RandomCrop"] and "RandomResizedCropAndInterpolation" not in steps
    image = noise(0, (32, 32))
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    shifted = eval_transform(config, 32)(image)
    assert all(np.corrcoef(whole[c].flatten(), shifted[c].flatten())[0, 1] > 0.9999 for c in range(3))


def test_digits_are_not_flipped_and_stay_in_range():
    steps = [type(step).__name__ for step in train_transform(DIGITS, 16).transforms]
    assert "RandomHorizontalFlip" not in steps and "RandAugment" not in steps
    image = eval_transform(DIGITS, 16)(Image.new("RGB", (8, 8), (255, 0, 128)))
    assert image.amin((1, 2)).tolist() == pytest.approx([1, -1, 0], abs=0.01)


@pytest.mark.parametrize("wrong", [{"aa": "rand-z9"}, {"aa": "magic"}])
def test_an_unknown_augmentation_is_refused(wrong):
    with pytest.raises(UserError, match="--aa is .* no policy of timm"):
        train_transform(DataConfig(data_set="IMNET", **wrong), 48)
