"""Feeding a training: images a second and core of each way, beside libjpeg-turbo alone; what a training step waits.

The photographs are cut from the two that ship with scikit-learn, at their own resolution.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.results import Unit
from image_task.batches import TrainBatches
from image_task.config import Config, DataConfig, ModelConfig
from image_task.data import ImageData, build_data
from image_task.main import run
from image_task.shards import Recipe, make
from image_task.sources import Files
from rmeeto.data.loading import load_batches
from rmeeto.data.pictures import decode, read_file
from rmeeto.engine import OptimConfig, RunConfig
from rmeeto.engine.feed import on_device

QUALITY = 90  # files of about ImageNet's size
CLASSES = ("a", "b")
FLOOR = "libjpeg-turbo alone"


class Sizes(NamedTuple):
    """How much is measured.

    Args:
        rounds: in each of which every way has its turn.
        photos: by size in pixels, how many files a turn reads: about ImageNet's, and a quarter of a telephone's.
        copies: of the first of them, for a turn of all cores.
        img_size: of the input.
        batch: of the ways.
        model, step_batch, steps: of the training whose waiting is measured.
    """

    rounds: int = 5
    photos: tuple[tuple[tuple[int, int], int], ...] = (((500, 375), 64), ((2000, 1500), 12))
    copies: int = 4
    img_size: int = 224
    batch: int = 4
    model: str = "vim_tiny_patch16_224"
    step_batch: int = 8
    steps: int = 6


QUICK = Sizes(2, (((96, 72), 8), ((200, 150), 4)), 1, 32, 2, "vim_nano_patch2_16", 2, 2)


def units(device: torch.device, quick: bool) -> Iterator[Unit]:
    """Every way on one core, by size of the photographs; what all cores give; a training that waits."""
    sizes = QUICK if quick else Sizes(step_batch=8 if device.type == "cpu" else 128)
    for size, count in sizes.photos:
        yield Unit(f"{_words(size)}, one core", partial(_one_core, sizes, size, count))
    yield Unit("all cores", partial(_all_cores, sizes, device))
    yield Unit("training", partial(_training, sizes, device))


def _one_core(sizes: Sizes, size: tuple[int, int], count: int) -> Iterator[dict[str, Any]]:
    with _photographs(size, count) as folder:
        make(folder / "photos", folder / "shards", Recipe(size=count))
        encoded = [read_file(file) for file in sorted(folder.glob("photos/train/*/*.jpg"))]
        tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded]
        build = partial(_data, sizes, folder / "photos")
        usual, exact, drafted = build(), build(draft="off"), build(draft="all")
        torchvisions, shards = _by_torchvision(build()), _data(sizes, folder / "shards", data_set="tar")
        ways: dict[str, Callable[[], float]] = {
            FLOOR: lambda: _speed([(decode_jpeg(data, ImageReadMode.RGB),)] for data in tensors),
            "Pillow alone": lambda: _speed([(decode(data),)] for data in encoded),
            "training, draft off": lambda: _speed(_train(exact)),
            "training": lambda: _speed(_train(usual)),
            "training, float32 by the worker": lambda: _speed(_train(usual, finished=True)),
            "training, torchvision's decoder": lambda: _speed(_train(torchvisions)),
            "training, shards": lambda: _speed(_train(shards)),
            "evaluation": lambda: _speed(usual.eval_batches()),
            "evaluation, draft all": lambda: _speed(drafted.eval_batches()),
        }
        rates = _interleaved(ways, sizes.rounds)
    mean_bytes, floor = sum(map(len, encoded)) // len(encoded), np.median(rates[FLOOR])
    for way, found in rates.items():
        row = {"what": _words(size), "way": way, "workers": 0, **_rate(found), "mean_bytes": mean_bytes}
        yield row | {"share_of_floor": float(np.median(found) / floor)}


def _all_cores(sizes: Sizes, device: torch.device) -> Iterator[dict[str, Any]]:
    """Rows with a worker a core: what reaches the device."""
    cores = os.cpu_count() or 1
    (size, count), *_ = sizes.photos
    with _photographs(size, count, sizes.copies) as folder:
        data = _data(sizes, folder / "photos", num_workers=cores, device=device)
        ways = {
            "training": lambda: _speed(on_device(_train(data), device)),
            "training, float32 by the worker": lambda: _speed(on_device(_train(data, True), device)),
        }
        if device.type == "cuda":
            build = partial(_data, sizes, folder / "photos", num_workers=cores, device=device, aa="none")
            plain, nvjpeg = build(), build(decoder="nvjpeg")
            ways["training, no policy"] = lambda: _speed(on_device(_train(plain), device))
            ways["training, no policy, nvJPEG"] = lambda: _speed(on_device(_train(nvjpeg), device))
        for way, found in _interleaved(ways, sizes.rounds).items():
            yield {"what": _words(size), "way": way, "workers": cores, **_rate(found, cores)}


def _training(sizes: Sizes, device: torch.device) -> Iterator[dict[str, Any]]:
    """Rows of a training of a few steps: which share of its time it waits for data."""
    (size, count), *_ = sizes.photos
    with _photographs(size, count, -(-sizes.step_batch * sizes.steps // count)) as folder:
        for workers in sorted({0, os.cpu_count() or 1}):
            config = Config(
                ModelConfig(model=sizes.model),
                data=_config(
                    sizes,
                    folder / "photos",
                    num_workers=workers,
                    batch_size=sizes.step_batch,
                    input_size=sizes.img_size,
                    max_train_batches=sizes.steps,
                    max_eval_batches=1,
                ),
                optim=OptimConfig(epochs=2, warmup_epochs=0),
                run=RunConfig(output_dir=str(folder), name=f"{workers}", device=device.type),
            )
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                run(config)
            lines = map(json.loads, (folder / f"{workers}" / "log.jsonl").read_text().splitlines())
            *_, process = (line["process"] for line in lines if line["event"] == "train")  # warm by now
            yield {
                "what": f"{sizes.model}, batch {sizes.step_batch}",
                "way": "training",
                "workers": workers,
                "images_per_s": process["images_per_s"],
                "waits": process["wait_s"] / process["seconds"],
            }


def _interleaved(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Images a second of each way in each round, on one thread."""
    rates: dict[str, list[float]] = {way: [] for way in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one core is one core
    try:
        for _ in range(rounds):
            for way, turn in ways.items():
                rates[way].append(turn())
    finally:
        torch.set_num_threads(threads)
    return rates


def _speed(batches: Iterable[Sequence[Any]]) -> float:
    """Images a second from the first batch to the last: without the start of workers."""
    batches = iter(batches)
    next(batches)
    start = time.perf_counter()
    count = sum(len(images) for images, *_ in batches)
    return count / (time.perf_counter() - start)


def _rate(rates: list[float], cores: int = 1) -> dict[str, Any]:
    first, median, third = np.percentile(rates, (25, 50, 75)).tolist()
    return {"images_per_s": median, "spread": third - first, "images_per_s_core": median / cores}


class _Finished(Dataset):
    """Training batches whose worker leaves nothing to do: they are float32, erased and mixed."""

    def __init__(self, batches: TrainBatches) -> None:
        self.batches = batches

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        batch, _ = self.batches[number]
        return self.batches.transform.finish(batch)


def _train(data: ImageData, finished: bool = False) -> Iterable[Any]:
    if not finished:
        return data.train_batches(0)
    numbers = range(data.batches_per_epoch)
    return load_batches(
        _Finished(data.batches(0)),
        numbers,
        num_workers=data.config.num_workers,
        pin_memory=data.config.pin_mem,
    )


@dataclass(frozen=True)
class _Torchvision(Files):
    """Files that torchvision decodes."""

    def open(self, index: int) -> tuple[Image.Image, int]:
        encoded = torch.frombuffer(bytearray(read_file(self.name(index))), dtype=torch.uint8)
        pixels = decode_jpeg(encoded, ImageReadMode.RGB)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy()), int(self.targets[index])


def _by_torchvision(data: ImageData) -> ImageData:
    data._train_source = _Torchvision(**vars(data._train_source))
    return data


def _config(sizes: Sizes, folder: Path, **settings: Any) -> DataConfig:
    usual = {"data_set": "folder", "num_workers": 0, "batch_size": sizes.batch, "repeated_aug": False}
    return DataConfig(data_path=str(folder), **{**usual, **settings})


def _data(sizes: Sizes, folder: Path, device: torch.device | str = "cpu", **settings: Any) -> ImageData:
    config = _config(sizes, folder, **settings)
    return build_data(config, img_size=sizes.img_size, rank=0, world_size=1, seed=0, device=device)


@contextlib.contextmanager
def _photographs(size: tuple[int, int], count: int, copies: int = 1) -> Iterator[Path]:
    """A folder whose photos/ has so many JPEG files to train on, and the same to evaluate on; mirrored where a
    photograph is too small. `copies`: names of each."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="rmeeto-loader-") as temporary:
        folder = Path(temporary)
        for name in CLASSES:
            (folder / "photos" / "train" / name).mkdir(parents=True)
        (folder / "photos" / "val").symlink_to("train")
        whole = [
            np.pad(image, [(0, size[1]), (0, size[0]), (0, 0)], "symmetric") for image in load_sample_images().images
        ]
        for number in range(count):
            image = whole[number % 2]
            top, left = (int(generator.integers(0, held - side)) for held, side in zip(image.shape, size[::-1]))
            path = folder / "photos" / "train" / CLASSES[number % 2] / f"{number}.jpg"
            Image.fromarray(image[top : top + size[1], left : left + size[0]]).save(path, quality=QUALITY)
            for copy in range(1, copies):
                path.with_stem(f"{number}-{copy}").symlink_to(path.name)
        yield folder


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
