"""The image data sets by name (`--data-set`): where each keeps its splits, images and classes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from image_task.config import DataConfig
from image_task.sources import Arrays, Files, Reader, Shards, Source, numbered
from rmeeto.data.sampler import subset_indices
from rmeeto.errors import UserError

KNOWN = "digits IMNET SUBIMNET CIFAR CIFAR10 CIFAR100 INAT INAT18 INAT19 folder tar wds hfds/<name>"
READERS = (
    "folder",
    "tar",
    "wds",
    "hfds",
)  # of timm: what follows their slash matters to hfds only, as in timm
SPLITS = {"train": ("train",), "val": ("val", "validation")}


def load_sources(config: DataConfig, *, seed: int, train: bool = True) -> tuple[Source | None, Source]:
    """Open the training and the evaluation images of `config.data_set`.

    `folder`, `tar`, `wds` and `hfds/<name>` are timm's names. Tar and WebDataset shards are indexed once and
    then read at random: timm's own readers stream WebDataset, which can neither resume nor evaluate exactly.
    For the same reason timm's other streams (tfds, hfids) are refused.

    Args:
        config: data_set, data_path, data_ratio and inat_category are read.
        seed: draws the SUBIMNET subset, a plain random share of the training images.
        train: False leaves the training images out, so that a folder with val/ alone can be evaluated.

    Returns:
        (training images or None, evaluation images), with the same classes.

    Raises:
        UserError: unknown name, missing or empty folders, splits that do not belong together.
    """
    name, folder = config.data_set, config.data_path
    prefix, slash, rest = name.partition("/")
    kind = prefix.lower() if slash else name
    if kind in ("tfds", "hfids"):
        raise UserError(
            f"{name} is a stream, which can neither resume nor evaluate exactly; use hfds/ or wds."
        )
    if kind not in LOADERS or (slash and kind not in READERS) or (kind == "hfds" and not rest):
        raise UserError(f"--data-set is {name!r}; known are {KNOWN}.")
    if config.data_ratio != 1 and kind != "SUBIMNET":
        raise UserError(f"--data_ratio {config.data_ratio} has no effect on {name}; it belongs to SUBIMNET.")
    if kind not in ("digits", "hfds") and not os.path.isdir(folder):
        raise UserError(f"--data-path {folder!r} is no folder; give the one that holds {name}.")

    load = LOADERS[kind]
    eval_source = load(config, "val")
    if not train:
        return None, eval_source
    train_source = load(config, "train")
    if kind in ("wds", "hfds") and set(eval_source.classes) < set(train_source.classes):
        # classes that are only numbered: a small evaluation set need not hold the last ones
        eval_source = replace(eval_source, classes=train_source.classes)
    if train_source.classes != eval_source.classes:
        _refuse_classes(folder, train_source.classes, eval_source.classes)
    if kind == "SUBIMNET":
        train_source = _subset(train_source, config.data_ratio, seed)
    return train_source, eval_source


def _refuse_classes(folder: str, train: list[str], val: list[str]) -> None:
    odd = sorted(set(train) ^ set(val))
    raise UserError(
        f"{folder}: train has {len(train)} classes, val {len(val)}; not in both: {', '.join(odd[:3])}"
        f"{' ...' if len(odd) > 3 else ''}. Give both splits the same classes."
    )


def _subset(source: Files, ratio: float, seed: int) -> Files:
    kept = subset_indices(len(source), ratio, seed=seed).numpy()
    if not len(kept):
        raise UserError(f"--data_ratio {ratio} of {len(source)} images leaves none; give a larger share.")
    return replace(source, paths=source.paths[kept], targets=source.targets[kept])


def _digits(config: DataConfig, split: str) -> Source:
    """8 x 8 scans that ship with scikit-learn; 1437 to train, 360 to evaluate, the same for every seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(np.arange(len(images)), test_size=360, stratify=digits.target, random_state=0)
    part = np.sort(parts[split == "val"])
    return Arrays(images[part], digits.target[part], [str(digit) for digit in range(10)])


def _cifar(config: DataConfig, split: str) -> Source:
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = CIFAR10 if config.data_set == "CIFAR10" else CIFAR100
    try:
        found = dataset(config.data_path, train=split == "train")
    except RuntimeError as error:
        raise UserError(
            f"{config.data_path} holds no intact {dataset.base_folder}/; unpack {dataset.filename} there."
        ) from error
    return Arrays(found.data, np.array(found.targets), list(found.classes))


def _image_folder(config: DataConfig, split: str) -> Source:
    from torchvision.datasets import ImageFolder

    root = _split_folder(config, split)
    try:
        found = ImageFolder(str(root), allow_empty=True)
    except FileNotFoundError as error:
        raise UserError(f"{root} holds no class folders; expected {root}/<class>/<image>.") from error
    empty = sorted(set(range(len(found.classes))) - set(found.targets))
    if empty:
        raise UserError(
            f"{root}: {len(empty)} of {len(found.classes)} class folders hold no image, such as "
            f"{found.classes[empty[0]]}/; fill or remove them."
        )
    return Files.of(found.samples, found.classes)


def _timm_folder(config: DataConfig, split: str) -> Source:
    from timm.data import create_reader

    root = _split_folder(config, split)
    try:
        reader = create_reader("folder", root=str(root))
    except RuntimeError as error:
        raise UserError(f"{root} holds no image; expected {root}/<class>/<image>.") from error
    return Files.of(reader.samples, list(reader.class_to_idx))


def _tar(config: DataConfig, split: str) -> Source:
    shards = _split_shards(config, split)
    # train.tar holds class folders; a tar among others in train/ is named after its class
    source = Shards.by_folder(shards, stem_is_class=Path(shards[0]).parent != Path(config.data_path))
    return _not_empty(source, "<class>/<image>")


def _wds(config: DataConfig, split: str) -> Source:
    return _not_empty(Shards.webdataset(_split_shards(config, split)), "<key>.jpg beside <key>.cls")


def _hfds(config: DataConfig, split: str) -> Source:
    if not find_spec("datasets"):
        raise UserError(f"{config.data_set} needs the package datasets; run `pip install datasets`.")
    from datasets import get_dataset_split_names
    from timm.data import create_reader

    try:
        present = get_dataset_split_names(config.data_set.partition("/")[2])
        wanted = [name for name in SPLITS[split] + ("test",) * (split == "val") if name in present]
        if not wanted:
            raise ValueError(f"no {split} split, only {', '.join(present)}")
        reader = create_reader(config.data_set, root=config.data_path or None, split=wanted[0])
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{config.data_set} cannot be opened: {reason}. Check name and network.") from error
    return Reader(reader, list(reader.class_to_idx) or numbered(reader.iter_targets()))


def _inat(config: DataConfig, split: str) -> Source:
    """iNaturalist 2018 or 2019 from its JSON files; classes are numbered as they appear, as DeiT did."""
    year = "2019" if config.data_set.endswith("19") else "2018"
    root = Path(config.data_path)
    train = _read_json(root / f"train{year}.json")
    found = train if split == "train" else _read_json(root / f"val{year}.json")
    listed = root / "categories.json"
    categories = _read_json(listed) if listed.exists() else train["categories"]
    if config.inat_category not in categories[0]:
        raise UserError(f"--inat_category is {config.inat_category!r}; known are {', '.join(categories[0])}.")
    label = {category["id"]: str(category[config.inat_category]) for category in categories}
    classes = list(dict.fromkeys(label[note["category_id"]] for note in train["annotations"]))
    number = {name: index for index, name in enumerate(classes)}
    try:
        target = {note["image_id"]: number[label[note["category_id"]]] for note in found["annotations"]}
        samples = [(str(root / image["file_name"]), target[image["id"]]) for image in found["images"]]
    except KeyError as error:
        raise UserError(
            f"{root}: val{year}.json knows {error}, train{year}.json does not; use files of one release."
        ) from error
    return Files.of(samples, classes)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{path} is missing or no JSON; it comes with the data set's annotations.") from error


def _split_folder(config: DataConfig, split: str) -> Path:
    root = Path(config.data_path)
    for name in SPLITS[split]:
        if (root / name).is_dir():
            return root / name
    raise UserError(
        f"{root} has no folder {split}/; --data-path must hold train/ and val/, each <class>/<image>."
    )


def _split_shards(config: DataConfig, split: str) -> list[str]:
    """The tar files of a split: listed in timm's _info.json, or train.tar, train/*.tar, *train*.tar."""
    root = Path(config.data_path)
    for info in (root / "_info.json", root / "info.json"):
        splits = _read_json(info).get("splits", {}) if info.exists() else {}
        for name in SPLITS[split]:
            if name in splits:
                return [str(root / file) for file in splits[name]["filenames"]]
    for name in SPLITS[split]:
        for pattern in (f"{name}.tar", f"{name}/*.tar", f"*{name}*.tar"):
            if shards := sorted(map(str, root.glob(pattern))):
                return shards
    raise UserError(
        f"{root} has no {split}.tar, {split}/*.tar or *{split}*.tar; --data-path must hold tar files."
    )


def _not_empty(source: Shards, expected: str) -> Shards:
    if not len(source):
        raise UserError(f"{source.shards[0]}: no image in the tar files of this split; expected {expected}.")
    return source


LOADERS = {
    "digits": _digits,
    "IMNET": _image_folder,
    "SUBIMNET": _image_folder,
    "CIFAR": _cifar,
    "CIFAR100": _cifar,
    "CIFAR10": _cifar,
    "INAT": _inat,
    "INAT18": _inat,
    "INAT19": _inat,
    "folder": _timm_folder,
    "tar": _tar,
    "wds": _wds,
    "hfds": _hfds,
}
