"""Image data sets of other code: torchvision's by name, and one's own, as `package.module:function`."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torchvision import datasets

from image_task.config import DataConfig
from image_task.sources import Arrays, Picture, Source
from image_task.torchvision_names import NAMELESS, SETS, torchvision_name
from rmeeto.data.contents import by_class
from rmeeto.errors import UserError
from rmeeto.imports import find_object

IN_MEMORY = (datasets.MNIST, datasets.CIFAR10, datasets.USPS)  # whose `data` and `targets` are what they give


@dataclass(frozen=True)
class Mapped(Source):
    """A map-style data set of (PIL image, class) pairs."""

    dataset: Any
    targets: np.ndarray | None  # (n,) numbers of `classes`, where they are known without opening an image
    classes: list[str]
    numbers: np.ndarray  # (m,) what each of the data set's own class numbers is among `classes`

    def __len__(self) -> int:
        return len(self.dataset)

    def open(self, index: int) -> tuple[Picture, int]:
        image, target = self.dataset[index]
        if not 0 <= int(target) < len(self.numbers):
            raise UserError(f"image {index} is of class {int(target)}; expected 0 to {len(self.numbers) - 1}")
        return image.convert("RGB"), int(self.numbers[int(target)])

    def name(self, index: int) -> str:
        return f"image {index}"

    def contents(self, folder: str) -> dict[str, list[Any]]:
        if self.targets is None:
            return {"of any": [len(self), ""]}
        return by_class(self.classes, self.targets, (b"%d" % index for index in range(len(self))))


def load_torchvision(config: DataConfig, split: str) -> Source:
    """A split of one of torchvision's classification sets, read from `config.data_path`.

    Raises:
        UserError: its files are not there, or it has no such split or classes.
    """
    name = torchvision_name(config.data_set)
    assert name is not None
    made, arguments = getattr(datasets, name), SETS[name][split != "train"]
    download = {"download": True} if config.download and "download" in inspect.signature(made).parameters else {}
    try:
        found = made(config.data_path, **arguments, **download)
    except (RuntimeError, OSError) as error:
        where = f"{config.data_path}/{name}/raw (unpacked)" if hasattr(made, "mirrors") else config.data_path
        where = f"{config.data_path}/{made.base_folder} (unpacked)" if hasattr(made, "tgz_md5") else where
        fetch = "" if config.download else ", or fetch them with --download"
        raise UserError(
            f"{name}: no {split} split below {config.data_path!r}: {str(error).partition(chr(10))[0]}",
            f"put its files into {where}, as torchvision.datasets.{name} has them{fetch}",
        ) from None
    return _in_memory(_source(found, name))


def load_own(config: DataConfig, split: str) -> Source:
    """What the function that `config.data_set` names returns: ``function(config, "train" | "val")``.

    It returns a map-style data set: a length, ``[index]`` -> (PIL image, class number), and ``classes``, their names.

    Raises:
        UserError: it cannot be imported, or returns something else.
    """
    try:
        found = find_object(config.data_set)(config, split)
    except ValueError as error:
        raise UserError(f"--data_set is {error}") from None
    return _source(found, config.data_set)


def _source(dataset: Any, name: str) -> Mapped:
    targets, classes = _targets(dataset), getattr(dataset, "classes", None)
    if classes is None and targets is not None:
        classes = range(int(targets.max()) + 1)
    elif classes is None and name in NAMELESS:
        classes = range(NAMELESS[name])
    if classes is None or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UserError(
            f"{name} gave a {type(dataset).__name__}; expected a data set with a length, [index] -> (PIL image, class) "
            "and classes, their names"
        )
    names = [str(one) for one in classes]
    if twice := next((one for one, count in Counter(names).items() if count > 1), None):
        first, second, *_ = (number for number, one in enumerate(names) if one == twice)
        raise UserError(
            f"{name}: its classes {first} and {second} are both called {twice!r}; give each a name of its own, for "
            "classes are matched by name"
        )
    return Mapped(dataset, targets, names, np.arange(len(names)))


def _targets(dataset: Any) -> np.ndarray | None:
    """The class number of every image by the names that torchvision has for it, where that is what stands there."""
    for key in ("targets", "labels", "_labels", "y"):
        found = getattr(dataset, key, None)
        if isinstance(found, Tensor | np.ndarray | list | tuple) and len(found) == len(dataset) > 0:
            found = np.asarray(found)
            return found if found.ndim == 1 and found.dtype.kind in "iu" and found.min() >= 0 else None
    return None


def _in_memory(source: Mapped) -> Source:
    """A set of torchvision's without opening image by image, where that is the same."""
    dataset = source.dataset
    if not isinstance(dataset, IN_MEMORY) or source.targets is None:
        return source
    return Arrays(np.asarray(dataset.data), source.targets, source.classes)
