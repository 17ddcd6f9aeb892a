"""Augmentation that images and clips share: mixup from the settings, and a repair of timm's policies."""

from __future__ import annotations

from itertools import chain
from typing import Any

from PIL import Image, ImageOps
from timm.data import Mixup

from rmeeto.errors import UserError


def build_mixup(config: Any, num_classes: int, batch_size: int, img_size: int) -> Mixup | None:
    """Mixup and cutmix with label smoothing over whole batches, or None where both are off.

    Args:
        config: settings of timm's names; `mixes` says whether any of them is on.
        num_classes: of the soft targets.
        batch_size: of what is mixed.
        img_size: its edge in pixels.

    Raises:
        UserError: an odd batch, whose middle sample has no partner, or edges of cutmix within one pixel.
    """
    if not config.mixes:
        return None
    if batch_size % 2:
        raise UserError(
            f"batch_size={batch_size}, but mixup pairs the samples of a batch; give an even one, or mixup=0 and "
            "cutmix=0."
        )
    if config.cutmix_minmax is not None:
        smallest, largest = (int(share * img_size) for share in config.cutmix_minmax)
        if smallest == largest:  # timm draws from [smallest, largest)
            raise UserError(
                f"cutmix_minmax={config.cutmix_minmax}, both {smallest} of {img_size} pixels; give shares "
                "further apart."
            )
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        cutmix_minmax=config.cutmix_minmax,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        mode=config.mixup_mode,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
    )


def allow_black(policy: Any) -> None:
    """Let timm's Posterize keep no bit at all, which its increasing form draws and Pillow 13 refuses."""
    for op in (*getattr(policy, "ops", ()), *chain(*getattr(policy, "policy", ()))):
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits == 0:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits) if bits < 8 else image
