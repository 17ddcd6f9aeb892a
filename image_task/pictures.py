"""Pictures as a model sees them: how a chosen model's input is prepared, and which part of a picture that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision.transforms import InterpolationMode

from image_task.config import SMALL
from image_task.transforms import Resize
from rmeeto.cli.chosen import Chosen
from rmeeto.data.pictures import decode, read_file


class Preparation:
    """From a picture to (3, size, size): shorter side resized, the middle cropped, normalised.

    Args:
        chosen: a model; a run's was trained with the run's settings, every other says its own.
    """

    def __init__(self, chosen: Chosen) -> None:
        cfg: dict[str, Any] = chosen.model.pretrained_cfg
        data = chosen.config.data
        self.size = cfg["input_size"][-1]
        if chosen.of_run and data.data_set != "digits":
            cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "interpolation": "bicubic"}
            cfg["crop_pct"] = 1.0 if self.size <= SMALL else data.eval_crop_ratio
        self.transform = create_transform(
            self.size,
            **{key: cfg[key] for key in ("mean", "std", "interpolation")},
            crop_pct=cfg.get("crop_pct") or 1.0,
        )
        resized = self.transform.transforms[0].size
        self.resized = resized if isinstance(resized, int) else resized[0]
        self.transform.transforms[0] = Resize(
            self.resized, interpolation=InterpolationMode(cfg["interpolation"])
        )

    def __call__(self, picture: Image.Image) -> Any:
        return self.transform(picture)

    def seen(self, picture: Image.Image, most: int) -> np.ndarray:
        """The part of a picture that the model sees: (H, H, 3) in [0, 1], its own pixels, or `most` a side."""
        edge = max(1, round(min(picture.size) * self.size / self.resized))
        left, upper = ((side - edge) // 2 for side in picture.size)
        part = picture.crop((left, upper, left + edge, upper + edge))
        if edge > most:
            part = part.resize((most, most), Image.Resampling.LANCZOS)
        return np.asarray(part) / 255


def read_picture(path: Path) -> Image.Image | str:
    """A picture, or why there is none."""
    try:
        return decode(read_file(path))
    except Exception as error:  # decoders raise nearly anything on a damaged file
        return str(error) or repr(error)
