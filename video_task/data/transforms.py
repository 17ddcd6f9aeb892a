"""From decoded frames to a normalised clip; what is drawn at random is the same for all frames of a clip."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from rmeeto.data.augment import allow_black, build_mixup
from rmeeto.data.finish import Erased, Finish, Mix, batch_of, draw_erased
from rmeeto.data.sampler import seed_globals
from rmeeto.errors import UserError
from video_task.config import VideoDataConfig
from video_task.data.decode import MAX_PIXELS
from video_task.data.sampling import crop_corners

Shrink = Callable[[np.ndarray], np.ndarray]
View = tuple[Tensor, list[Erased]]  # (3, T, size, size) uint8, and what is to be erased of every frame


def build_finish(mix: Mix | None = None) -> Finish:
    """What makes float32 of mean 0 and deviation 1 (ImageNet's) of clips."""
    mean, std = (255 * torch.tensor(of) for of in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return Finish(mean, std, scale=1, mix=mix)


def finished(views: list[View]) -> Tensor:
    """Views as a model sees them: (n, 3, T, size, size) float32."""
    return build_finish()(batch_of([(*view, 0) for view in views]))[0]


class TrainTransform:
    """The augmentation of a training clip; it draws from the global generators.

    Random resized crop, flip, RandAugment (which replaces colour jitter, as in timm), normalisation, erasing.
    """

    def __init__(self, config: VideoDataConfig, size: int, *, flip: bool):
        """
        Args:
            config: of the augmentation.
            size: edge of the clip in pixels.
            flip: mirror every other clip.

        Raises:
            UserError: a RandAugment that timm does not know.
        """
        interpolation = InterpolationMode(config.train_interpolation)
        self.crop = v2.RandomResizedCrop(size, interpolation=interpolation, antialias=True)
        steps: list[Callable] = [v2.RandomHorizontalFlip()] if flip else []
        if config.aa not in ("", "none"):
            steps.append(_SameForAll(_RandAugment(config, size)))
        elif config.color_jitter:
            steps.append(v2.ColorJitter(*(config.color_jitter,) * 3))
        self.steps = v2.Compose([*steps, v2.Identity()])  # of nothing there is no Compose
        self.erase = None
        if config.reprob:
            self.erase = RandomErasing(config.reprob, mode=config.remode, max_count=config.recount, device="cpu")

    def shrink(self, height: int, width: int) -> Shrink:
        """Draw where frames of this size are cropped; gives what makes of one, (H, W, 3), what is kept of it."""
        box = self.crop.make_params([torch.empty(3, height, width, device="meta")])

        def crop(frame: np.ndarray) -> np.ndarray:
            return _channels_last(self.crop.transform(_channels_first(frame), box))

        return crop

    def views(self, frames: np.ndarray) -> list[View]:
        """From (T, size, size, 3) uint8, already cropped, to one view and what is erased of its frames."""
        clip = self.steps(_channels_first(frames)).transpose(0, 1)
        if self.erase is None:
            return [(clip, [])]
        seed_globals([random.getrandbits(32) for _ in range(3)])
        return [(clip, draw_erased(self.erase, (len(clip), *clip.shape[-2:])))]

    def __call__(self, frames: np.ndarray) -> Tensor:
        """From (T, H, W, 3) uint8 to (1, 3, T, size, size) float32."""
        return finished(self.views(np.stack([*map(self.shrink(*frames.shape[1:3]), frames)])))


class ViewTransform:
    """The crops of a frame run that is evaluated: shorter side resized, square crops along the longer one."""

    def __init__(self, config: VideoDataConfig, size: int, num_crops: int = 1):
        """
        Args:
            config: short_side_size is read.
            size: edge of the crops in pixels.
            num_crops: 1 takes the middle.

        Raises:
            UserError: crops larger than the frames.
        """
        self.size, self.num_crops = size, num_crops
        self.short_side = config.short_side_size or size
        if self.short_side < size:
            raise UserError(f"--short_side_size is {self.short_side}; expected at least the input's {size} pixels.")

    def shrink(self, height: int, width: int) -> Shrink:
        """What makes of a frame, (H, W, 3), the resized one.

        Raises:
            ValueError: frames so thin that a resized one has more than MAX_PIXELS.
        """
        if self.short_side**2 * max(height, width) > MAX_PIXELS * min(height, width):
            raise ValueError(f"frames of {height} x {width}, too thin for a shorter side of {self.short_side}")

        def resize(frame: np.ndarray) -> np.ndarray:
            small = v2.functional.resize(_channels_first(frame), [self.short_side], antialias=True)
            return _channels_last(small)

        return resize

    def views(self, frames: np.ndarray) -> list[View]:
        """From (T, h, w, 3) uint8, already resized, to its crops, of which nothing is erased."""
        small = _channels_first(frames)
        corners = crop_corners(*small.shape[-2:], self.size, self.num_crops)
        crops = [small[..., top : top + self.size, left : left + self.size] for top, left in corners]
        return [(crop.transpose(0, 1), []) for crop in crops]

    def finish(self, frames: np.ndarray) -> Tensor:
        """From (T, h, w, 3) uint8, already resized, to (num_crops, 3, T, size, size) float32."""
        return finished(self.views(frames))

    def __call__(self, frames: np.ndarray) -> Tensor:
        """From (T, H, W, 3) uint8 to (num_crops, 3, T, size, size) float32."""
        return self.finish(np.stack([*map(self.shrink(*frames.shape[1:3]), frames)]))


class ClipMixup:
    """timm's mixup and cutmix for clips (B, 3, T, H, W): one box for all frames."""

    def __init__(self, config: VideoDataConfig, num_classes: int, size: int):
        self._mixup = build_mixup(config, num_classes, config.batch_size * config.num_sample, size)

    def __call__(self, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images, soft_targets = self._mixup(clips.flatten(1, 2), targets)
        return images.view_as(clips), soft_targets


class _SameForAll:
    """A transform of one image, which draws from the global generators, with the same draws for all frames."""

    def __init__(self, transform: Callable[[Tensor], Tensor]):
        self.transform = transform

    def __call__(self, frames: Tensor) -> Tensor:
        seeds = [random.getrandbits(32) for _ in range(3)]
        done = []
        for frame in frames:
            seed_globals(seeds)
            done.append(self.transform(frame))
        return torch.stack(done)


class _RandAugment:
    def __init__(self, config: VideoDataConfig, size: int):
        settings = {
            "translate_const": int(size * 0.45),
            "img_mean": tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN),
            "interpolation": Image.Resampling[config.train_interpolation.upper()],
        }
        try:
            self.policy = rand_augment_transform(config.aa, settings)
        except (AssertionError, KeyError, ValueError) as error:
            raise UserError(
                f"--aa is {config.aa!r}, which is no policy of timm; give such as {VideoDataConfig.aa}, or none."
            ) from error
        allow_black(self.policy)

    def __call__(self, frame: Tensor) -> Tensor:
        image = self.policy(Image.fromarray(frame.permute(1, 2, 0).numpy()))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _channels_first(frames: np.ndarray) -> Tensor:
    # Pictures that needed no change are read-only, as Pillow gives them: torch would warn.
    return torch.from_numpy(np.require(frames, requirements=["C", "W"])).movedim(-1, -3)


def _channels_last(frame: Tensor) -> np.ndarray:
    return frame.movedim(-3, -1).numpy()
