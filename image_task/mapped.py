"""Image data sets of other code: torchvision's by name, and one's own, as `package.module:function`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torchvision import datasets

from image_task.config import DataConfig
from image_task.sources import Arrays, Picture, Source
from image_task.torchvision_names import torchvision_name
from rmeeto.data.contents import by_class
from rmeeto.errors import UserError
from rmeeto.imports import find_object

# What each split may be called by torchvision, in the order in which they are tried.
SPLITS = {"train": ("train", "trainval"), "val": ("test", "val", "valid")}


@dataclass(frozen=True)
class Mapped(Source):
    """A map-style data set of (PIL image, class) pairs."""

    dataset: Any
    targets: np.ndarray | None  # (n,) numbers of `classes`; None: the data set's own, and in its order
    classes: list[str]

    def __len__(self) -> int:
        return len(self.dataset)

    def open(self, index: int) -> tuple[Picture, int]:
        image, target = self.dataset[index]
        return image.convert("RGB"), int(target if self.targets is None else self.targets[index])

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
    made, parameters = getattr(datasets, name), inspect.signature(getattr(datasets, name)).parameters
    options: dict[str, Any] = {"download": True} if config.download and "download" in parameters else {}
    choices = [{"train": split == "train"}]
    if "split" in parameters:
        choices = [{"split": called} for called in SPLITS[split]]
    reasons = []
    for choice in choices:
        try:
            return _source(made(config.data_path, **choice, **options), name)
        except ValueError as error:  # no split of that name
            reasons.append(error)
        except (RuntimeError, OSError) as error:
            reasons.append(error)
            break
    where = f"{config.data_path}/{name}/raw (unpacked)" if hasattr(made, "mirrors") else config.data_path
    raise UserError(
        f"{name}: no {split} split below {config.data_path!r}: {str(reasons[-1]).splitlines()[0]}\n"
        f"put its files into {where}, as torchvision.datasets.{name} has them, or fetch them with --download"
    )


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


def _source(dataset: Any, name: str) -> Source:
    targets = next(
        (getattr(dataset, key) for key in ("targets", "labels", "_labels", "y") if hasattr(dataset, key)),
        None,
    )
    targets = targets.numpy() if isinstance(targets, Tensor) else None if targets is None else np.asarray(targets)
    classes = getattr(dataset, "classes", None)
    if classes is None and targets is not None:
        classes = range(int(targets.max()) + 1)
    if classes is None or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UserError(
            f"{name} gave a {type(dataset).__name__}; expected a data set with a length, [index] -> (PIL image, class) "
            "and classes, their names"
        )
    images = getattr(dataset, "data", None)
    images = images.numpy() if isinstance(images, Tensor) else images
    names = [str(one) for one in classes]
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[-1:] != (1,):
        if targets is not None and (images.ndim == 3 or images.shape[3:] == (3,)):
            return Arrays(images, targets, names)
    return Mapped(dataset, targets, names)
