"""Pictures as a model sees them: how a chosen model's input is prepared, and which part of a picture that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import InterpolationMode

from image_task.transforms import Resize, crop_pct, normalisation
from rmeeto.cli.chosen import PREPARED, Chosen
from rmeeto.data.pictures import decode, read_file
from rmeeto.errors import UserError
from rmeeto.trained_on import trained_on


class Preparation:
    """From a picture to (3, size, size): shorter side resized, the middle cropped, normalised.

    A model of one channel is given the picture in grey.

    Args:
        chosen: a model; a run's was trained with the run's settings, every other says its own. Flags override either.

    Raises:
        UserError: a model of another number of channels, or that sees no square.
    """

    def __init__(self, chosen: Chosen) -> None:
        self.channels, height, self.size = chosen.model.pretrained_cfg["input_size"]
        if height != self.size:
            raise UserError(f"the model sees {height} x {self.size} pixels; expected one that sees a square.")
        if self.channels not in (1, 3):
            raise UserError(f"the model takes images of {self.channels} channels; pictures have 3, or 1 in grey.")
        cfg = self._described(chosen)
        self.transform = create_transform(self.size, **{**cfg, "crop_pct": cfg["crop_pct"] or 1.0})
        resized = self.transform.transforms[0].size
        self.resized = resized if isinstance(resized, int) else resized[0]
        self.transform.transforms[0] = Resize(self.resized, InterpolationMode(cfg["interpolation"]))

    def _described(self, chosen: Chosen) -> dict[str, Any]:
        data = chosen.config.data
        if chosen.of_run:
            return {**normalisation(data), "crop_pct": crop_pct(data, self.size), "interpolation": "bicubic"}
        known = None if chosen.is_folder else trained_on(chosen.config.model.model_pth)
        cfg = chosen.model.pretrained_cfg if known is None else known.to_dict()
        described = {name: cfg.get(name) for name in (*PREPARED.values(), "interpolation")}
        return described | {of: getattr(data, name) for name, of in PREPARED.items() if name in chosen.said}

    def __call__(self, picture: Image.Image) -> Any:
        if self.channels == 3:
            return self.transform(picture)
        return self.transform(picture.convert("L").convert("RGB")).mean(0, keepdim=True)

    def seen(self, picture: Image.Image, most: int) -> np.ndarray:
        """The part of a picture that the model sees: (H, H, 3) in [0, 1], its own pixels, or `most` a side."""
        edge = max(1, round(min(picture.size) * self.size / self.resized))
        left, upper = ((side - edge) // 2 for side in picture.size)
        part = picture.crop((left, upper, left + edge, upper + edge))
        part = part if self.channels == 3 else part.convert("L").convert("RGB")
        if edge > most:
            part = part.resize((most, most), Image.Resampling.LANCZOS)
        return np.asarray(part) / 255


def read_picture(path: Path) -> Image.Image | str:
    """A picture, or why there is none."""
    try:
        return decode(read_file(path))
    except Exception as error:  # decoders raise nearly anything on a damaged file
        return getattr(error, "strerror", None) or str(error) or repr(error)
