"""Small image folders made on the spot."""

import io

import numpy as np
import pytest
from PIL import Image


def _noise(seed, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _jpeg(seed):
    file = io.BytesIO()
    _noise(seed).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def noise():
    """noise(seed, size) -> an image of noise."""
    return _noise


@pytest.fixture
def jpeg():
    """jpeg(seed) -> an image of noise as a JPEG file's bytes."""
    return _jpeg


@pytest.fixture
def folder(tmp_path):
    """train/ with 2 x 12 images and val/ with 2 x 5, in classes ant and bee."""
    for split, count in (("train", 12), ("val", 5)):
        for number, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                path = tmp_path / split / name / f"{index:02}.jpg"
                path.write_bytes(_jpeg(1000 * number + index))
    return tmp_path
