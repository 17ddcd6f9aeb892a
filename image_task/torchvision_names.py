"""Which data sets torchvision knows by name."""

from __future__ import annotations

import inspect

from torchvision import datasets

SHORT = {"FASHION": "FashionMNIST"}
ELSEWHERE = ("ImageNet",)  # torchvision unpacks it from its archives; IMNET reads the folders


def torchvision_name(name: str) -> str | None:
    """torchvision's own name of a data set with a training and a test split that reads `root`; None if it has none."""
    wanted = SHORT.get(name.upper(), name).lower()
    for known, found in vars(datasets).items():
        if (
            known.lower() == wanted
            and known not in ELSEWHERE
            and inspect.isclass(found)
            and issubclass(found, datasets.VisionDataset)
        ):
            parameters = inspect.signature(found).parameters
            return known if "root" in parameters and {"train", "split"} & set(parameters) else None
    return None
