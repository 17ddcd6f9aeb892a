"""Which classification sets of torchvision have a training and an evaluation split, and how each calls them."""

from __future__ import annotations

from typing import Any

SHORT = {"FASHION": "FashionMNIST", "CIFAR": "CIFAR100"}
_FLAG = {"train": True}, {"train": False}


def _splits(train: str, val: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"split": train}, {"split": val}


# Arguments of the training and of the evaluation split. ImageNet is not here: torchvision unpacks it from its archives,
# IMNET reads the folders; others have one split alone (EuroSAT), videos, or no classes.
SETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS"), _FLAG),
    "EMNIST": ({"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
    **dict.fromkeys(
        ("Country211", "DTD", "FER2013", "FGVCAircraft", "Flowers102", "Food101", "GTSRB", "PCAM", "RenderedSST2",
         "STL10", "SVHN", "StanfordCars"),
        _splits("train", "test"),
    ),
    **dict.fromkeys(("CLEVRClassification", "Imagenette"), _splits("train", "val")),
    "OxfordIIITPet": _splits("trainval", "test"),
    "Places365": _splits("train-standard", "val"),
}  # fmt: skip
# Classes of those that name none and say no numbers before a picture is opened.
NAMELESS = {"FER2013": 7, "GTSRB": 43, "PCAM": 2}


def torchvision_name(name: str) -> str | None:
    """torchvision's own name of a set of `SETS`, whatever its case; None if it is none of them."""
    wanted = SHORT.get(name.upper(), name).lower()
    return next((known for known in SETS if known.lower() == wanted), None)
