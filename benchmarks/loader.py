"""The image loader: images a second on one core, and on all of them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from image_task.config import DataConfig
from image_task.data import ImageData, build_data

SIZE, QUALITY = (500, 375), 90  # about ImageNet's, in pixels and in bytes
CLASSES = ("a", "b")
BATCH = 32


def loader_rows(
    num_images: int, epochs: int, img_size: int = 224, size: tuple[int, int] = SIZE
) -> Iterator[dict[str, Any]]:
    """Rows of the training and the evaluation pipeline (decode, crop, augment, batch) on JPEG files made here."""
    with tempfile.TemporaryDirectory(prefix="rmeeto-loader-") as folder:
        mean_bytes = _write_images(Path(folder), num_images, size)
        for workers in sorted({0, os.cpu_count() or 1}):
            config = DataConfig(
                data_set="IMNET",
                data_path=folder,
                batch_size=min(BATCH, num_images // 4),
                num_workers=workers,
                pin_mem=False,
            )
            data = build_data(config, img_size=img_size, rank=0, world_size=1, seed=0)
            for split in ("train", "eval"):
                rates = [_rate(data, split, epoch) for epoch in range(epochs)]
                first, third = np.percentile(rates, (25, 75))
                cores = max(1, workers)
                yield {
                    "split": split,
                    "workers": workers,
                    "cores": cores,
                    "images_per_s": float(np.median(rates)),
                    "spread": float(third - first),
                    "images_per_s_core": float(np.median(rates)) / cores,
                    "mean_bytes": mean_bytes,
                    "size": size,
                    "img_size": img_size,
                }


def _rate(data: ImageData, split: str, epoch: int) -> float:
    """Images a second of one epoch, from its first batch to its last: without the start of the workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one core is one core
    try:
        batches = data.train_batches(epoch) if split == "train" else data.eval_batches()
        next(batches)
        start, count = time.perf_counter(), 0
        for images, _ in batches:
            count += len(images)
        return count / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)


def _write_images(folder: Path, count: int, size: tuple[int, int]) -> int:
    """Smooth noise with some grain, which compresses about as photographs do; the mean size of a file."""
    generator = np.random.default_rng(0)
    total = 0
    for split in ("train", "val"):
        for i in range(count):
            coarse = generator.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            image = image.filter(ImageFilter.GaussianBlur(2))
            grain = generator.normal(0, 8, (size[1], size[0], 1))
            pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
            path = folder / split / CLASSES[i % len(CLASSES)] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=QUALITY)
            total += path.stat().st_size
    return total // (2 * count)
