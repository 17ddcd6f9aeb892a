"""Picture files, through the transforms of training and evaluation."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image, features

from image_task.batches import _read
from image_task.config import DataConfig
from image_task.sources import Files
from image_task.transforms import eval_transform, train_transform
from rmeeto.data.loading import Unreadable
from rmeeto.data.pictures import decode
from tests.fuzz.case import ACCEPT, SAME, Case, Kind, Refused, Wrong
from tests.fuzz.mutate import damage, some_bytes

SIZES = (0, 1, 2, 255, 1000, 13000, 20000, 65535, 170_000_000, 2**31 - 1, 2**32 - 1)


@cache
def _pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def seeds() -> Mapping[str, bytes]:
    colour, grey = Image.fromarray(_pixels()), Image.fromarray(_pixels()[..., 0])
    deep = Image.fromarray(_pixels()[..., 0].astype(np.uint16) * 257)
    formats: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "jpg": (colour, {"format": "JPEG"}), "progressive.jpg": (colour, {"format": "JPEG", "progressive": True}),
        "cmyk.jpg": (colour.convert("CMYK"), {"format": "JPEG"}), "png": (colour, {"format": "PNG"}),
        "palette.png": (colour.quantize(16), {"format": "PNG", "transparency": 0}), "deep.png": (deep,
        {"format": "PNG"}),
        "bits.png": (grey.convert("1"), {"format": "PNG"}), "gif": (colour.quantize(16), {"format": "GIF"}),
        "bmp": (colour, {"format": "BMP"}), "ppm": (colour, {"format": "PPM"}), "webp": (colour, {"format": "WEBP"}),
        "tif": (colour, {"format": "TIFF"}), "deflate.tif": (colour, {"format": "TIFF",
        "compression": "tiff_adobe_deflate"}),
    }  # fmt: skip
    if features.check("jpg_2000"):
        formats["jp2"] = colour, {"format": "JPEG2000"}
    if features.check("avif"):
        formats["avif"] = colour, {"format": "AVIF"}
    found = {}
    for name, (image, options) in formats.items():
        file = io.BytesIO()
        image.save(file, **options)
        found[name] = file.getvalue()
    return found


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    seed = rng.choice(list(seeds))
    data, choice = seeds[seed], rng.random()
    if choice < 0.1:  # of half a file no decoder makes a picture
        return Case(data[: rng.randrange(len(data) // 2)], seed, SAME)
    if seed.endswith("png") and choice < 0.3:  # PNG has checksums
        return Case(damage(rng, data), seed, SAME)
    if seed.endswith("png") and choice < 0.6:
        return Case(_chunks(rng, data), seed)
    if choice < 0.7:
        at = rng.randrange(min(len(data), 64))
        width, order = rng.choice((2, 4)), rng.choice("<>")
        value = struct.pack(order + ("H" if width == 2 else "I"), rng.choice(SIZES) % 256**width)
        return Case(data[:at] + value + data[at + width :], seed)
    if choice < 0.75:
        return Case(data + rng.choice(list(seeds.values())), seed)
    return Case(some_bytes(rng, data), seed)


def _chunks(rng: Random, data: bytes) -> bytes:
    """A PNG with a changed chunk whose checksum is right."""
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    at = rng.randrange(len(chunks))
    name, body = chunks[at]
    match rng.randrange(5):
        case 0 | 1 if name == b"IHDR":
            body = struct.pack(">II", rng.choice(SIZES), rng.choice(SIZES)) + body[8:]
        case 2:
            chunks.insert(rng.randrange(len(chunks)), chunks[at])
        case 3:
            name = rng.choice(
                (
                    b"iCCP",
                    b"zTXt",
                    b"iTXt",
                    b"eXIf",
                    b"tRNS",
                    b"PLTE",
                    b"acTL",
                    b"fcTL",
                    b"fdAT",
                    b"gAMA",
                    b"cHRM",
                )
            )
        case _:
            body = some_bytes(rng, body)
    chunks[at] = name, body
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@cache
def _transforms() -> tuple[Any, Any]:
    config = DataConfig(data_set="IMNET", data_path="d")
    return train_transform(config, 224), eval_transform(config, 224)


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    path = Path("x." + case.seed.rpartition(".")[2])
    path.write_bytes(case.data)
    source = Files.of([(str(path), 0)], ["a"])
    random.seed(0)
    torch.manual_seed(0)
    for transform in _transforms():
        made = _read(source, 0, transform)
        if isinstance(made, Unreadable):
            if "MemoryError" in made.reason:
                raise Wrong(made.reason)
            raise Refused(made.reason)
        if made[0].shape != (3, 224, 224):
            raise Wrong(f"a picture of {tuple(made[0].shape)}")
    if case.right in (SAME, ACCEPT):
        if decode(case.data).tobytes() != decode(seeds[case.seed]).tobytes():
            raise Wrong("other pixels, without a word")
    return "read"


KIND = Kind(seeds, mutate, check, weight=20, batch=40)
