"""From a picture to the model's input: DeiT's recipe through timm, and a gentle one for digits."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode, PILToTensor, RandomAffine, RandomCrop
from torchvision.transforms import Resize as TorchvisionResize
from torchvision.transforms.functional import resized_crop

from image_task.config import SMALL, DataConfig
from image_task.encoded import DecodeFinish, Draw, encoded_batch
from image_task.sources import Picture, decoded, header
from rmeeto.data.augment import allow_black
from rmeeto.data.finish import Erased, Finish, Mix, batch_of, draw_erased
from rmeeto.data.pictures import reduction_for
from rmeeto.errors import UserError

MAX_RESIZED = 1 << 25  # pixels of a picture whose shorter side is resized


def normalisation(config: DataConfig) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the normalised images, by channel."""
    mean, std = ((0.5,) * 3,) * 2 if config.digits else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return {"mean": config.mean or mean, "std": config.std or std}


def crop_pct(config: DataConfig, img_size: int) -> float:
    """The share of the resized image's edge that evaluation sees at an input size."""
    return 1.0 if config.digits or img_size <= SMALL else config.eval_crop_ratio


class Transform:
    """From a picture to the model's input, in two parts: the pixels, in a worker, and the rest where the model is.

    Args:
        steps: from a picture to (3, H, W) uint8.
        finish: what is left to do.
        erase: timm's random erasing, drawn behind the steps.
        collate: a batch of what `pixels` gives, and classes.
    """

    def __init__(
        self,
        steps: Callable[[Picture], Any],
        finish: Callable[..., tuple[Tensor, Tensor]],
        erase: RandomErasing | None = None,
        collate: Callable[..., Any] = batch_of,
    ) -> None:
        self.steps, self.finish, self.erase, self.collate = steps, finish, erase, collate

    def pixels(self, picture: Picture) -> tuple[Any, list[Erased]]:
        """(3, H, W) uint8, or what a GPU is to decode; and what is to be erased of it."""
        found = self.steps(picture)
        return found, draw_erased(self.erase, found.shape)

    def __call__(self, picture: Picture) -> Tensor:
        """All of it but the mixing, for one picture: (3, H, W) float32."""
        return self.finish(self.collate([(*self.pixels(picture), 0)]))[0][0]


def train_transform(config: DataConfig, img_size: int, mix: Mix | None = None) -> Transform:
    """The augmentation of a training image, (H, W) RGB -> (3, img_size, img_size).

    RandAugment replaces colour jitter, as in DeiT and timm. Digits get a small rotation, shift and scaling
    instead of cropping, flipping and RandAugment, which turn one digit into another.

    Args:
        mix: mixup of whole batches, the last part of `finish`.

    Raises:
        UserError: an augmentation that timm does not know, or that a GPU does not do.
    """
    finish = Finish(**normalisation(config), mix=mix)
    gpu = config.decoder == "nvjpeg"
    if gpu and (not config.augment or config.aa not in ("", "none") or config.digits or img_size <= SMALL):
        raise UserError(
            f"data.decoder='nvjpeg' augments JPEGs of more than {SMALL} pixels, without a policy of timm, which runs "
            "on Pillow's images; give --aa none, or leave it out."
        )
    if not config.augment:
        return Transform(_eval_steps(config, img_size, config.draft != "off"), finish)
    digits = config.data_set == "digits"
    steps = _digits_steps(img_size) if digits else _deit_steps(config, img_size)
    erase = None
    if config.reprob or digits:
        erase = RandomErasing(config.reprob, mode=config.remode, max_count=config.recount, device="cpu")
    if gpu:
        crop, flip, jitter, _ = steps.transforms
        return Transform(Draw(crop.crop, flip, jitter), DecodeFinish(finish), erase, encoded_batch)
    return Transform(steps, finish, erase)


def eval_transform(config: DataConfig, img_size: int) -> Transform:
    """Resize to img_size / eval_crop_ratio and crop the centre; digits and small inputs are not cropped."""
    return Transform(_eval_steps(config, img_size, config.draft == "all"), Finish(**normalisation(config)))


def _eval_steps(config: DataConfig, img_size: int, draft: bool) -> Compose:
    if config.data_set == "digits":
        return Compose([_resize(img_size), PILToTensor()])
    ratio = crop_pct(config, img_size)
    transform = create_transform(img_size, interpolation="bicubic", crop_pct=ratio, normalize=False)
    transform.transforms[0] = _resize(transform.transforms[0].size, draft)
    return transform


def _deit_steps(config: DataConfig, img_size: int) -> Compose:
    try:
        transform = create_transform(
            img_size,
            is_training=True,
            color_jitter=config.color_jitter,
            auto_augment=None if config.aa in ("", "none") else config.aa,
            interpolation=config.train_interpolation,
            mean=normalisation(config)["mean"],  # what a policy fills with
            normalize=False,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"--aa is {config.aa!r}, which is no policy of timm; give such as {DataConfig.aa}, v0, none."
        ) from error
    draft = config.draft != "off"
    if img_size <= SMALL:
        padded = RandomCrop(img_size, padding=img_size // 8)
        transform.transforms[:1] = [_resize(img_size, draft), padded]
    else:
        transform.transforms[0] = Crop(transform.transforms[0], draft)
    for step in transform.transforms:
        allow_black(step)
    return transform


def _digits_steps(img_size: int) -> Compose:
    turn = RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR)
    return Compose([_resize(img_size), turn, PILToTensor()])


class Crop:
    """timm's random resized crop, drawn from a picture's size, so that no more of it is decoded than the crop needs.

    Args:
        crop: timm's.
        draft: decode a JPEG at a half, a quarter or an eighth of its size where the crop still has all the pixels that
            it is resized to. Its place is that of the whole picture, to fractions of a pixel.
    """

    def __init__(self, crop: RandomResizedCropAndInterpolation, draft: bool) -> None:
        self.crop, self.draft = crop, draft

    def __call__(self, picture: Picture) -> Image.Image:
        crop = self.crop
        whole = header(picture).size
        top, left, height, width = crop.get_params(header(picture), crop.scale, crop.ratio)
        several = isinstance(crop.interpolation, tuple | list)
        how = random.choice(crop.interpolation) if several else crop.interpolation
        reduction = reduction_for((width, height), crop.size[::-1]) if self.draft else 1
        image = decoded(picture, reduction)
        if image.size == whole:
            return resized_crop(image, top, left, height, width, crop.size, how)
        box = (left, top, left + width, top + height)
        return image.resize(crop.size[::-1], str_to_pil_interp(how.value), box=tuple(side / reduction for side in box))


class Resize(TorchvisionResize):
    """Resizes the shorter side. Of a picture so thin that MAX_RESIZED would not do only the middle is resized.

    Nothing is lost to a crop of the middle; a random one is then drawn from the middle 16 squares.

    Args:
        draft: decode a JPEG at a half, a quarter or an eighth of its size where its shorter side stays as long as
            needed.
    """

    def __init__(self, size: int, interpolation: InterpolationMode, draft: bool = False) -> None:
        super().__init__(size, interpolation=interpolation)
        self.draft = draft

    def forward(self, picture: Picture) -> Image.Image:
        size = header(picture).size
        thin = self.size**2 * max(size) > MAX_RESIZED * min(size)
        wanted = (self.size, self.size)
        image = decoded(picture, reduction_for(size, wanted) if self.draft and not thin else 1)
        if thin:
            (short, long), upright = sorted(image.size), image.height > image.width
            cut = max(0, (long - 16 * short - 8) // 2)  # 8: what bicubic interpolation looks at
            box = (cut, 0, long - cut, short)
            image = image.crop((box[1], box[0], box[3], box[2]) if upright else box)
        return super().forward(image)


def _resize(img_size: int, draft: bool = False) -> Resize:
    return Resize(img_size, InterpolationMode.BICUBIC, draft)
