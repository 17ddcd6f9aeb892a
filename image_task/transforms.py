"""From an image to a normalised tensor: DeiT's recipe through timm, and a gentle one for digits."""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import (
    Compose,
    InterpolationMode,
    Normalize,
    RandomAffine,
    RandomCrop,
    ToTensor,
)
from torchvision.transforms import Resize as TorchvisionResize

from image_task.config import SMALL, DataConfig
from rmeeto.data.augment import allow_black
from rmeeto.errors import UserError

MAX_RESIZED = 1 << 25  # pixels of a picture whose shorter side is resized


def normalisation(config: DataConfig) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the normalised images, by channel."""
    mean, std = ((0.5,) * 3,) * 2 if config.digits else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return {"mean": config.mean or mean, "std": config.std or std}


def crop_pct(config: DataConfig, img_size: int) -> float:
    """The share of the resized image's edge that evaluation sees at an input size."""
    return 1.0 if config.digits or img_size <= SMALL else config.eval_crop_ratio


def train_transform(config: DataConfig, img_size: int) -> Any:
    """The augmentation of a training image, (H, W) RGB -> (3, img_size, img_size).

    RandAugment replaces colour jitter, as in DeiT and timm. Digits get a small rotation, shift and scaling
    instead of cropping, flipping and RandAugment, which turn one digit into another.

    Raises:
        UserError: an augmentation that timm does not know.
    """
    if not config.augment:
        return eval_transform(config, img_size)
    return _digits_train(config, img_size) if config.data_set == "digits" else _deit_train(config, img_size)


def eval_transform(config: DataConfig, img_size: int) -> Any:
    """Resize to img_size / eval_crop_ratio and crop the centre; digits and small inputs are not cropped."""
    if config.data_set == "digits":
        return Compose([_resize(img_size), *_digits_to_tensor(config)])
    ratio = crop_pct(config, img_size)
    transform = create_transform(img_size, interpolation="bicubic", crop_pct=ratio, **normalisation(config))
    transform.transforms[0] = _resize(transform.transforms[0].size)
    return transform


def _deit_train(config: DataConfig, img_size: int) -> Compose:
    try:
        transform = create_transform(
            img_size,
            is_training=True,
            color_jitter=config.color_jitter,
            auto_augment=None if config.aa in ("", "none") else config.aa,
            interpolation=config.train_interpolation,
            re_prob=config.reprob,
            re_mode=config.remode,
            re_count=config.recount,
            **normalisation(config),
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"--aa is {config.aa!r}, which is no policy of timm; give such as {DataConfig.aa}, v0, none."
        ) from error
    if img_size <= SMALL:
        transform.transforms[:1] = [_resize(img_size), RandomCrop(img_size, padding=img_size // 8)]
    for step in transform.transforms:
        allow_black(step)
    return transform


def _digits_train(config: DataConfig, img_size: int) -> Compose:
    turn = RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR)
    erase = RandomErasing(config.reprob, mode=config.remode, max_count=config.recount, device="cpu")
    return Compose([_resize(img_size), turn, *_digits_to_tensor(config), erase])


class Resize(TorchvisionResize):
    """Resizes the shorter side. Of a picture so thin that MAX_RESIZED would not do only the middle is resized.

    Nothing is lost to a crop of the middle; a random one is then drawn from the middle 16 squares.
    """

    def forward(self, image: Image.Image) -> Image.Image:
        (short, long), upright = sorted(image.size), image.height > image.width
        if self.size**2 * long > MAX_RESIZED * short:
            cut = max(0, (long - 16 * short - 8) // 2)  # 8: what bicubic interpolation looks at
            box = (cut, 0, long - cut, short)
            image = image.crop((box[1], box[0], box[3], box[2]) if upright else box)
        return super().forward(image)


def _resize(img_size: int) -> Resize:
    return Resize(img_size, interpolation=InterpolationMode.BICUBIC)


def _digits_to_tensor(config: DataConfig) -> list[Any]:
    return [ToTensor(), Normalize(**normalisation(config))]
