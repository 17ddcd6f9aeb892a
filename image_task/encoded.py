"""Training JPEGs that a GPU decodes (nvJPEG, through torchvision): workers hand over their bytes and what was drawn.

timm's policies run on Pillow's images, so there are none: crop, flip, colour jitter, erasing and mixing remain.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import ColorJitter, InterpolationMode, RandomHorizontalFlip
from torchvision.transforms import functional as F

from image_task.sources import Picture, decoded, header
from rmeeto.data.finish import Batch, Erased, Finish, batch_of
from rmeeto.data.pictures import Encoded, decode
from rmeeto.errors import UserError

END = b"\xff\xd9"  # of a JPEG that is whole
CHANGES = F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue


def check_decoder(device: torch.device) -> None:
    """Refuse nvJPEG where it is not.

    Raises:
        UserError: the device is no GPU, or torchvision has no decoder any more.
    """
    if device.type != "cuda":
        raise UserError(f"data.decoder='nvjpeg' decodes on a GPU, and this runs on {device.type}; leave it out.")
    _decoder()


def _decoder() -> Callable[..., list[Tensor]]:
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError as error:
        raise UserError(f"data.decoder='nvjpeg' needs torchvision.io.decode_jpeg ({error}); leave it out.") from None
    return partial(decode_jpeg, mode=ImageReadMode.RGB)


class Drawn(NamedTuple):
    """A JPEG and what is to be made of it.

    Attributes:
        data: (n,) uint8; None where a batch holds it.
        box: top, left, height, width of the crop.
        how: its interpolation.
        flip: whether it is mirrored.
        jitter: order and factors of the changes of colour, as `ColorJitter.get_params` draws them.
        shape: of the pixels: (3, size, size).
    """

    data: Tensor | None
    box: tuple[int, int, int, int]
    how: str
    flip: bool
    jitter: tuple[list[int], tuple[float | None, ...]]
    shape: tuple[int, int, int]


class Draw:
    """Draws what is to be made of a picture, from its size alone and in the order of the transforms that it stands for.

    Args:
        crop, flip, jitter: of timm and torchvision.
    """

    def __init__(
        self, crop: RandomResizedCropAndInterpolation, flip: RandomHorizontalFlip, jitter: ColorJitter
    ) -> None:
        self.crop, self.flip, self.jitter = crop, flip, jitter

    def __call__(self, picture: Picture) -> Drawn:
        crop, colour = self.crop, self.jitter
        box = crop.get_params(header(picture), crop.scale, crop.ratio)
        several = isinstance(crop.interpolation, tuple | list)
        how = random.choice(crop.interpolation) if several else crop.interpolation
        flip = bool(torch.rand(1) < self.flip.p)
        order, *factors = ColorJitter.get_params(colour.brightness, colour.contrast, colour.saturation, colour.hue)
        data = torch.frombuffer(bytearray(_jpeg(picture)), dtype=torch.uint8)
        return Drawn(data, box, how.value, flip, (order.tolist(), tuple(factors)), (3, *crop.size))


def _jpeg(picture: Picture) -> bytes:
    """A whole JPEG in colour or grey: the file as it is, or the picture encoded anew without visible loss."""
    if isinstance(picture, Encoded):
        plain = picture.header.format == "JPEG" and picture.header.mode in ("RGB", "L")
        if plain and picture.data.rstrip(b"\0").endswith(END):
            return picture.data
    file = io.BytesIO()
    decoded(picture).save(file, "JPEG", quality=100, subsampling=0)
    return file.getvalue()


class EncodedBatch(NamedTuple):
    """Samples as a worker hands them over.

    Attributes:
        files: (n,) uint8, one behind the other.
        lengths: of each, in bytes.
        drawn: of each, without its data.
        batch: the rest, without pixels.
    """

    files: Tensor
    lengths: list[int]
    drawn: list[Drawn]
    batch: Batch


def encoded_batch(
    samples: Sequence[tuple[Drawn, Sequence[Erased], int]], seed: list[int] | None = None
) -> EncodedBatch:
    """A batch of (what is drawn, what is erased, target)."""
    files = [drawn.data for drawn, _, _ in samples]
    rest = batch_of([(torch.empty(0), erased, target) for _, erased, target in samples], seed)
    alone = [drawn._replace(data=None) for drawn, _, _ in samples]  # a tensor each would be a file each
    return EncodedBatch(torch.cat(files), [len(file) for file in files], alone, rest)


class DecodeFinish:
    """Decodes, crops, flips and jitters on the device, and leaves the rest to `finish`."""

    def __init__(self, finish: Finish) -> None:
        self.finish = finish

    def __call__(self, batch: EncodedBatch, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """As of `Finish`."""
        images = _decode(list(batch.files.split(batch.lengths)), torch.device(device))
        pixels = torch.stack([_made(image, drawn) for image, drawn in zip(images, batch.drawn)])
        return self.finish(batch.batch._replace(pixels=pixels), device)


def _decode(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """(3, H, W) uint8 of each."""
    try:
        return _decoder()(files, device=device)
    except RuntimeError:  # of one of them, which it does not say
        pass
    try:
        return [F.pil_to_tensor(decode(file.numpy().tobytes())).to(device) for file in files]
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise UserError(
            f"an image that neither nvJPEG nor Pillow can decode ({error}); leave out data.decoder, and it is named "
            "and left out."
        ) from None


def _made(image: Tensor, drawn: Drawn) -> Tensor:
    """The pixels of a sample, (3, size, size) uint8."""
    how = InterpolationMode(drawn.how)
    image = F.resized_crop(image, *drawn.box, list(drawn.shape[1:]), how, antialias=True)
    image = F.hflip(image) if drawn.flip else image
    order, factors = drawn.jitter
    for number in order:
        if factors[number] is not None:
            image = CHANGES[number](image, factors[number])
    return image
