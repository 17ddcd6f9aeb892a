"""What is left to do to a batch of pixels where the model is: numbers are made of them, and parts erased and mixed.

Workers hand over bytes, a quarter of the numbers' size. What is random was drawn there, sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from rmeeto.data.sampler import preserved_globals, seed_globals

Erased = tuple[tuple[int, int, int, int], Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Batch(NamedTuple):
    """Samples as a worker hands them over.

    Attributes:
        pixels: (B, 3, H, W) uint8, or (B, 3, T, H, W) of clips.
        targets: (B,) int64.
        places: (n, 5) int64 of the erased rectangles: sample, top, left, height, width.
        erased: (m,) float32, what they are filled with, one behind the other, (3, height, width) each.
        seed: of the mixing, as of `seed_globals`; none: nothing is mixed.
    """

    pixels: Tensor
    targets: Tensor
    places: Tensor
    erased: Tensor
    seed: list[int] | None = None


def draw_erased(erase: Callable[[Any], Any] | None, size: Sequence[int]) -> list[Erased]:
    """Draw what timm's RandomErasing erases of an image, without the image.

    Args:
        erase: None erases nothing.
        size: (channels, height, width).

    Returns:
        (top, left, height, width) of each rectangle, and what fills it.
    """
    noted = _Noted(size)
    if erase is not None:
        erase(noted)
    return noted.rectangles


class _Noted:
    """Stands in for an image and notes what is written to it."""

    dtype = torch.float32

    def __init__(self, size: Sequence[int]) -> None:
        self._size = torch.Size(size)
        self.rectangles: list[Erased] = []

    def size(self) -> torch.Size:
        return self._size

    def __setitem__(self, where: tuple[slice, slice, slice], pixels: Tensor) -> None:
        _, rows, columns = where
        height, width = rows.stop - rows.start, columns.stop - columns.start
        filled = pixels.expand(self._size[0], height, width)
        self.rectangles.append(((rows.start, columns.start, height, width), filled))


def batch_of(samples: Sequence[tuple[Tensor, Sequence[Erased], int]], seed: list[int] | None = None) -> Batch:
    """A batch of (pixels, what is erased of them, target)."""
    pixels, erased, targets = zip(*samples)
    places = [(number, *place) for number, found in enumerate(erased) for place, _ in found]
    fills = [fill.flatten() for found in erased for _, fill in found]
    return Batch(
        default_collate(pixels),  # in a worker it stacks into shared memory, which saves a copy
        torch.tensor(targets),
        torch.tensor(places, dtype=torch.int64).view(-1, 5),
        torch.cat(fills) if fills else torch.empty(0),
        seed,
    )


class Finish:
    """Makes the model's input of a batch on any device; in float32 as torchvision and timm make it of a single image.

    Args:
        mean, std: of the channels.
        scale: what the bytes are divided by first; 1 where mean and std are those of bytes.
        mix: mixup and cutmix of (images, targets), where they are on.
    """

    def __init__(
        self,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        *,
        scale: float = 255.0,
        mix: Mix | None = None,
    ) -> None:
        self.mean, self.std = torch.as_tensor(mean), torch.as_tensor(std)
        self.scale, self.mix = scale, mix

    def __call__(self, batch: Batch, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) float32, or clips; targets (B,), or (B, num_classes) where they are mixed."""
        x, targets, noise = (part.to(device, non_blocking=True) for part in (batch.pixels, batch.targets, batch.erased))
        x = self.normalise(x)
        at, channels, frames = 0, x.shape[1], (1,) * (x.dim() - 4)
        for sample, top, left, height, width in batch.places.tolist():
            end = at + channels * height * width
            fill = noise[at:end].view(channels, *frames, height, width)
            x[sample][..., top : top + height, left : left + width] = fill
            at = end
        if self.mix is not None and batch.seed is not None:
            with preserved_globals():
                seed_globals(batch.seed)
                x, targets = self.mix(x, targets)
        return x, targets

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, 3, ...) uint8 -> float32."""
        shape = (-1, *(1,) * (pixels.dim() - 2))
        mean, std = (part.to(pixels.device).view(shape) for part in (self.mean, self.std))
        return pixels.float().div_(self.scale).sub_(mean).div_(std)
