"""A folder of one's own pictures, as somebody who tries the project has them: crops of a few real photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

# Classes, and where the photographs are that ship with packages.
OWN = {"cat": "skimage/chelsea.png", "flower": "sklearn/flower.jpg", "temple": "sklearn/china.jpg"}
OTHERS = {
    "astronaut": "skimage/astronaut.png",
    "cup": "skimage/coffee.png",
    "rocket": "skimage/rocket.jpg",
}
ENDINGS = ("jpg", "JPG", "jpeg", "png", "webp")


def photograph(name: str) -> Image.Image:
    """A photograph of scikit-learn or scikit-image, ``package/file``; without the package the test is skipped."""
    package, _, file = name.partition("/")
    folder = Path(pytest.importorskip(package).__file__).parent
    inside = {"sklearn": folder / "datasets" / "images", "skimage": folder / "data"}[package]
    return Image.open(inside / file).convert("RGB")


def make_folder(
    folder: Path,
    photographs: dict[str, str] = OWN,
    seed: int = 0,
    train: int = 60,
    val: int = 20,
    apart: bool = False,
) -> Path:
    """Write ``train/<class>/`` and ``val/<class>/``: crops of 60 to 224 pixels, changed a little in colour and size.

    Args:
        photographs: `photograph`'s names by class.
        seed: of the crops.
        train, val: pictures of each class.
        apart: cut those to train from the left two thirds of a photograph and the others from the rest, so that no
            pixel is in both; a hard task, for that side may show other things.
    """
    generator = np.random.default_rng(seed)
    for name, source in photographs.items():
        whole = photograph(source)
        edge = whole.width * 2 // 3
        left, right = ((0, edge), (edge, whole.width)) if apart else ((0, whole.width),) * 2
        parts = {"train": (*left, train), "val": (*right, val)}
        for split, (left, right, count) in parts.items():
            (folder / split / name).mkdir(parents=True)
            part = whole.crop((left, 0, right, whole.height))
            for number in range(count):
                image = _changed(part, generator)
                if number % 10 == 9:  # as pictures come from drawing programs
                    image = image.convert("RGBA") if number % 20 == 9 else image.quantize()
                    file = f"{name} {number}.png"
                else:
                    file = f"{name} {number}.{ENDINGS[number % len(ENDINGS)]}"
                image.save(folder / split / name / file)
    return folder


def _changed(part: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A crop, perhaps flipped, brightness and colour changed by up to 15 %, of another size."""
    side = int(generator.integers(96, min(224, *part.size) + 1))
    left, top = (int(generator.integers(0, length - side + 1)) for length in part.size)
    image = part.crop((left, top, left + side, top + side))
    if generator.random() < 0.5:
        image = ImageOps.mirror(image)
    for change in (ImageEnhance.Brightness, ImageEnhance.Color):
        image = change(image).enhance(float(generator.uniform(0.85, 1.15)))
    size = int(generator.integers(60, 225))
    return image.resize((size, size), Image.Resampling.BICUBIC)
