"""The image data sets by name (`--data-set`): where each keeps its splits, images and classes."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from image_task.config import DataConfig
from image_task.mapped import Mapped, load_own, load_torchvision
from image_task.sources import Arrays, Files, Part, Reader, Source
from image_task.tars import INDEX, Shards
from image_task.torchvision_names import SETS, torchvision_name
from rmeeto.data.classes import (
    LeftOut,
    as_labelled,
    check_text,
    check_used,
    files_below,
    in_order,
    numbered,
    read_names,
    subfolders,
)
from rmeeto.data.pictures import ENDINGS, check_regular, natural_key
from rmeeto.data.sampler import subset_indices
from rmeeto.errors import UserError, shown
from rmeeto.imports import is_import

KNOWN = (
    "digits IMNET SUBIMNET INAT INAT18 INAT19 folder tar wds hfds/<name>, "
    f"FASHION, CIFAR (of 100 classes) and torchvision's {' '.join(SETS)}, package.module:function for one's own"
)
READERS = (
    "folder",
    "tar",
    "wds",
    "hfds",
)  # of timm: what follows their slash matters to hfds only, as in timm
SPLITS = {"train": ("train",), "val": ("val", "validation", "valid", "eval", "evaluation", "test")}
FOLDERS = ("IMNET", "SUBIMNET", "folder")

logger = logging.getLogger(__name__)


def load_sources(
    config: DataConfig, *, seed: int, train: bool = True, labels: Sequence[str] | None = None
) -> tuple[Source | None, Source]:
    """Open the training and the evaluation images of `config.data_set`.

    `folder`, `tar`, `wds` and `hfds/<name>` are timm's names. Tar and WebDataset shards are indexed once and
    then read at random: timm's own readers stream WebDataset, which can neither resume nor evaluate exactly.
    For the same reason timm's other streams (tfds, hfids) are refused.

    Args:
        config: data_set, data_path, data_ratio, class_map and inat_category are read.
        seed: draws the SUBIMNET subset, a plain random share of the training images.
        train: False leaves the training images out, so that a folder with val/ alone can be evaluated.
        labels: names of the weights' outputs, where they are known; the classes are numbered as they are.

    Returns:
        (training images or None, evaluation images), with the same classes: those of `class_map`, or of the training
        split (of its class folders where `train` is False and they are there), or of what there is. Either split may
        lack some of them; a line says so.

    Raises:
        UserError: unknown name, missing or empty folders, a split with classes that the others do not have.
    """
    name, folder = config.data_set, config.data_path
    prefix, slash, rest = name.partition("/")
    kind = prefix.lower() if slash else name
    if kind in ("tfds", "hfids"):
        raise UserError(f"{name} is a stream, which can neither resume nor evaluate exactly; use hfds/ or wds.")
    load = loader_of(name)
    if config.data_ratio != 1 and kind != "SUBIMNET":
        raise UserError(f"--data_ratio {config.data_ratio} has no effect on {name}; it belongs to SUBIMNET.")
    if load not in (_digits, _hfds, load_own) and not (os.path.isdir(folder) or config.download):
        raise UserError(f"--data-path {folder!r} is no folder; give the one that holds {name}.")

    eval_source = load(config, "val")
    train_source = load(config, "train") if train or config.holdout else None
    names = read_names(config.class_map, "--class_map") if config.class_map else None
    if names is not None and kind in ("wds", "hfds"):
        eval_source = _named(eval_source, names)
        train_source = None if train_source is None else _named(train_source, names)
    classes = names or _classes(config, kind, train_source, eval_source)
    if labels is not None:
        classes = as_labelled(classes, labels, folder or name)
    eval_source = _as(eval_source, classes, f"the evaluation split of {folder or name}")
    if train_source is None:
        return None, eval_source
    check_text(classes if train else (), folder or name)
    train_source = _as(train_source, classes, f"the training split of {folder or name}")
    if kind == "SUBIMNET":
        train_source = _subset(train_source, config.data_ratio, seed)
    if config.holdout:
        train_source, eval_source = _held_out(train_source, config.holdout)
    return train_source if train else None, eval_source


def loader_of(name: str) -> Callable[[DataConfig, str], Source]:
    """What reads the data set of this name.

    Raises:
        UserError: it is not known.
    """
    prefix, slash, rest = name.partition("/")
    kind = prefix.lower() if slash else name
    if kind in LOADERS and (not slash or kind in READERS) and (kind != "hfds" or rest):
        return LOADERS[kind]
    if is_import(name):
        return load_own
    if torchvision_name(name) is not None:
        return load_torchvision
    raise UserError(f"--data_set is {name!r}; known are {KNOWN}.")


def _held_out(source: Source, count: int) -> tuple[Source, Source]:
    """The training images without ``count`` of them, and those."""
    if not 0 < count < len(source):
        raise UserError(f"--holdout {count} of {len(source)} training images; give fewer than there are.")
    order = np.random.default_rng(0).permutation(len(source))
    return Part(source, np.sort(order[count:])), Part(source, np.sort(order[:count]))


def _classes(config: DataConfig, kind: str, train: Source | None, val: Source) -> list[str]:
    """The classes of a data set: those of its training split, or of the one that there is."""
    if train is not None:
        return train.classes
    if kind in FOLDERS:
        try:
            trained = in_order(subfolders(_split_folder(config, "train")))
        except UserError:
            return val.classes
        return trained if set(val.classes) <= set(trained) else val.classes
    return val.classes


def _named(source: Source, names: list[str]) -> Source:
    """A source whose classes are only numbered with their names."""
    count = len(source.classes)
    numbers = [str(number) for number in range(count)]
    return replace(source, classes=names[:count]) if source.classes == numbers and count <= len(names) else source


def _as(source: Source, classes: list[str], where: str) -> Source:
    """The source with its targets as numbers of `classes`, of which it may lack some.

    Raises:
        UserError: it has others.
    """
    odd = [name for name in source.classes if name not in set(classes)]
    if odd:
        raise UserError(
            f"{where} has {len(odd)} classes that are not among the {len(classes)} of the training split or of "
            f"--class_map: {', '.join(odd[:3])}{' ...' if len(odd) > 3 else ''}. Move or remove them."
        )
    if isinstance(source, Reader):
        if source.classes != classes[: len(source.classes)]:
            raise UserError(
                f"{where} numbers its classes otherwise than the weights do, and cannot be numbered anew; give it as a "
                "folder."
            )
        return replace(source, classes=classes)
    number = {name: index for index, name in enumerate(classes)}
    numbers = np.array([number[name] for name in source.classes])
    targets = None if source.targets is None else numbers[source.targets]
    if targets is not None:
        check_used(targets, classes, where)
    renamed = replace(source, targets=targets, classes=classes)
    return replace(renamed, numbers=numbers) if isinstance(renamed, Mapped) else renamed


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


def _image_folder(config: DataConfig, split: str) -> Source:
    """Images in class folders and below them, torchvision's ImageFolder but for the order of the classes."""
    root = _split_folder(config, split)
    classes = _class_folders(root)
    samples = []
    left_out = LeftOut()
    for number, name in enumerate(classes):
        before = len(samples)
        for path in files_below(root / name):
            if os.path.splitext(path)[1].lower() in ENDINGS:
                samples.append((path, number))
            else:
                left_out.add(path, "other endings")
        if len(samples) == before:
            raise UserError(f"{root / name} holds no image; fill or remove it.")
    left_out.say(str(root))
    return Files.of(samples, classes)


def _timm_folder(config: DataConfig, split: str) -> Source:
    """Images whose class is the folder they lie in at any depth, as timm's reader `folder` has them."""
    root = _split_folder(config, split)
    _class_folders(root)
    paths, left_out = [], LeftOut()
    for path in files_below(root):
        if os.path.splitext(path)[1].lower() not in ENDINGS:
            left_out.add(path, "other endings")
        elif os.path.dirname(path) == str(root):
            left_out.add(path, "in no class folder")
        else:
            paths.append(path)
    left_out.say(str(root))
    if not paths:
        raise UserError(f"{root} holds no image; expected {root}/<class>/<image>.")
    paths.sort(key=lambda path: (natural_key(path), path))
    labels = [os.path.basename(os.path.dirname(path)) for path in paths]
    classes = in_order(labels)
    if not set(classes) <= set(top := subfolders(root)):
        logger.warning(
            "%s: a class is the folder that a picture lies in, as timm has it (%s), not the one of %s above it (%s); "
            "for those: --data_set IMNET",
            *(shown(str(root)), shown(", ".join(classes[:3])), shown(root.name), shown(", ".join(top[:3]))),
        )
    number = {name: index for index, name in enumerate(classes)}
    return Files.of([(path, number[label]) for path, label in zip(paths, labels)], classes)


def _class_folders(root: Path) -> list[str]:
    if not (names := subfolders(root)):
        raise UserError(f"{root} holds no class folders; expected {root}/<class>/<image>.")
    return in_order(names)


def _tar(config: DataConfig, split: str) -> Source:
    shards = _split_shards(config, split)
    if (index := Path(shards[0]).with_name(INDEX)).exists():
        return _not_empty(Shards.by_index(shards, index), "<class>/<image>")
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
        wanted = [name for name in SPLITS[split] if name in present]
        if not wanted:
            raise ValueError(f"no {split} split, only {', '.join(present)}")
        reader = create_reader(config.data_set, root=config.data_path or None, split=wanted[0])
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{config.data_set} cannot be opened: {reason}. Check name and network.") from error
    return Reader(reader, list(reader.class_to_idx) or numbered(reader.iter_targets(), config.data_set))


def _inat(config: DataConfig, split: str) -> Source:
    """iNaturalist 2018 or 2019 from its JSON files; classes are numbered as they appear, as DeiT did."""
    year = "2019" if config.data_set.endswith("19") else "2018"
    root = Path(config.data_path)
    train = _read_json(root / f"train{year}.json")
    found = train if split == "train" else _read_json(root / f"val{year}.json")
    listed = root / "categories.json"
    try:
        categories = _read_json(listed) if listed.exists() else train["categories"]
        if config.inat_category not in categories[0]:
            known = ", ".join(categories[0])
            raise UserError(f"--inat_category is {config.inat_category!r}; known are {known}.")
        label = {category["id"]: str(category[config.inat_category]) for category in categories}
        classes = list(dict.fromkeys(label[note["category_id"]] for note in train["annotations"]))
        number = {name: index for index, name in enumerate(classes)}
        target = {note["image_id"]: number[label[note["category_id"]]] for note in found["annotations"]}
        samples = [(str(root / image["file_name"]), target[image["id"]]) for image in found["images"]]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{root}: val{year}.json and train{year}.json are not as published, or of two releases ({error!r}); "
            "use files of one release."
        ) from error
    if not samples:
        raise UserError(f"{root}: the JSON file of {split} lists no image; fetch it again.")
    return Files.of(samples, classes)


def _read_json(path: Path) -> Any:
    try:
        check_regular(path)
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or no JSON; it comes with the data set's annotations.") from error


def _split_folder(config: DataConfig, split: str) -> Path:
    root = Path(config.data_path)
    for name in SPLITS[split]:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root} has no folder {split}/; --data-path must hold train/ and val/, each <class>/<image>.")


def _split_shards(config: DataConfig, split: str) -> list[str]:
    """The tar files of a split: listed in timm's _info.json, or train.tar, train/*.tar, *train*.tar.

    Of the last, those that have the name as a word, else those without another split's: festi*val*-train.tar is none.
    """
    root = Path(config.data_path)
    for info in (root / "_info.json", root / "info.json"):
        if info.exists() and (listed := _listed(info, split)):
            return [str(root / file) for file in listed]
    for name in SPLITS[split]:
        for pattern in (f"{name}.tar", f"{name}/*.tar"):
            if shards := sorted(map(str, root.glob(pattern))):
                return shards
        named = sorted(root.glob(f"*{name}*.tar"))
        words = {path: set(re.findall("[a-z]+", path.name.lower())) for path in named}
        others = {word for other, names in SPLITS.items() if other != split for word in names}
        shards = [path for path in named if name in words[path]]
        shards = shards or [path for path in named if not words[path] & others]
        if shards:
            return list(map(str, shards))
    raise UserError(f"{root} has no {split}.tar, {split}/*.tar or *{split}*.tar; --data-path must hold tar files.")


def _listed(info: Path, split: str) -> list[str]:
    """The tar files of a split in timm's _info.json; none where it does not list the split."""
    content = _read_json(info)
    splits = content.get("splits", {}) if isinstance(content, dict) else None
    if not isinstance(splits, dict):
        raise UserError(f"{info} is not as timm writes it; expected {{'splits': {{name: {{'filenames': [...]}}}}}}.")
    name = next((name for name in SPLITS[split] if name in splits), None)
    if name is None:
        return []
    files = splits[name].get("filenames") if isinstance(splits[name], dict) else None
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        raise UserError(f"{info}: {name} lists no tar files; expected their names in 'filenames'.")
    absent = [file for file in files if not os.path.isfile(info.parent / file)]
    if absent:
        raise UserError(f"{info}: {len(absent)} of {len(files)} tar files are not there, such as {absent[0]}.")
    return files


def _not_empty(source: Shards, expected: str) -> Shards:
    if not len(source):
        raise UserError(f"{source.shards[0]}: no image in the tar files of this split; expected {expected}.")
    return source


LOADERS = {
    "digits": _digits,
    "IMNET": _image_folder,
    "SUBIMNET": _image_folder,
    "INAT": _inat,
    "INAT18": _inat,
    "INAT19": _inat,
    "folder": _timm_folder,
    "tar": _tar,
    "wds": _wds,
    "hfds": _hfds,
}
