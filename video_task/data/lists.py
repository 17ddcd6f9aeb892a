"""Which videos a data set holds, by its lists or its folders."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmeeto.data.pictures import ENDINGS, hidden
from rmeeto.errors import UserError
from video_task.config import VideoDataConfig

VIDEOS = ".mp4 .webm .avi .mkv .mov .m4v .mpg .mpeg .ogv .flv .wmv .ts .3gp .gif".split()
FIRST = 8  # so many lines of a list are looked at to see what it is
SPLITS = {"train": ("train",), "val": ("val", "validation", "test"), "test": ("test", "val", "validation")}


@dataclass(frozen=True)
class Videos:
    """Labelled videos. The paths are one NumPy array, so that workers share its memory with their parent."""

    paths: np.ndarray  # (n,) bytes
    targets: np.ndarray  # (n,)
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return os.fsdecode(self.paths[index])


def load_videos(
    config: VideoDataConfig, *, train: bool = True, num_classes: int | None = None
) -> dict[str, Videos]:
    """Open the lists of a data set; no video is opened.

    Every data set but `folder` may come as train.csv, val.csv and test.csv, lines of path, separator and class
    number; a list of frame folders may have their numbers of frames in between. UCF101, HMDB51 and SSV2 may come
    as their own lists instead. A missing val or test list is replaced by the other.

    Args:
        config: data_set, data_path, prefix, split and fold are read.
        train: False leaves the training videos out.
        num_classes: of lists whose classes have no names; None counts up to the largest number in them.

    Returns:
        The videos of "train" (if asked for), "val" and "test", all with the same classes.

    Raises:
        UserError: an unknown name, missing, empty or malformed lists, videos that are not where the lists say.
    """
    folder = Path(config.data_path)
    check_data_set(config)
    if not config.data_path:  # Path("") would be the current folder
        raise UserError(f"--data_path is not given; give the folder that holds {config.data_set}.")
    if not folder.is_dir():
        raise UserError(f"--data_path {config.data_path!r} is no folder; give the one that holds the lists.")
    listed = config.data_set != "folder" and any((folder / f"{split}.csv").exists() for split in SPLITS)
    load = _csv if listed else LOADERS[config.data_set]
    found: dict[str, Videos] = {}
    for split in ("train", "val", "test") if train else ("val", "test"):
        try:
            samples, classes = load(config, split)
        except UserError:
            raise
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder}: the {split} list of {config.data_set} is not as published ({error!r}); fetch it again."
            ) from error
        paths, targets = zip(*samples)
        found[split] = Videos(np.array([os.fsencode(p) for p in paths]), np.array(targets), classes)
        _check_present(found[split], config)
    return _same_classes(found, config, num_classes)


def check_data_set(config: VideoDataConfig) -> None:
    """Refuse a data set that is unknown.

    Raises:
        UserError: which there are.
    """
    if config.data_set not in LOADERS:
        raise UserError(f"--data_set is {config.data_set!r}; known are {', '.join(LOADERS)}.")


def _csv(config: VideoDataConfig, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    file = _first(config, [f"{name}.csv" for name in SPLITS[split]])
    separator = config.split.replace(r"\t", "\t")  # as a shell passes '\t'
    lines = [(number, line.strip()) for number, line in enumerate(_text(file).splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    columns = _columns([line for _, line in lines[:FIRST]], separator, config)
    expected = separator.join(columns).replace("\t", r"\t")
    if not lines:
        raise UserError(f"{file} lists no video; expected lines of {expected}.")
    samples: list[tuple[str, int]] = []
    for number, line in lines:
        path, *counts = line.rsplit(separator, len(columns) - 1)
        if len(counts) < len(columns) - 1 or not all(count.strip().isdecimal() for count in counts):
            raise UserError(f"{file}, line {number} is {line!r}; expected {expected}, see --split.")
        samples.append((_join(config, path), int(counts[-1])))
    return samples, []


def _columns(lines: list[str], separator: str, config: VideoDataConfig) -> list[str]:
    """What a list's lines hold: where most end in two numbers, the former counts frames, or is part of the path."""
    plain, counted = ["<path>", "<class number>"], ["<path>", "<frames>", "<class number>"]
    endings = [[field.strip() for field in line.rsplit(separator, 2)[1:]] for line in lines]
    numbered = [len(ending) == 2 and all(map(str.isdecimal, ending)) for ending in endings]
    if 2 * sum(numbered) <= len(lines):
        return plain

    def present(columns: list[str]) -> int:
        paths = (line.rsplit(separator, len(columns) - 1)[0] for line in lines)
        return sum(os.path.exists(_join(config, path)) for path in paths)

    return max(counted, plain, key=present)


def _kinetics(config: VideoDataConfig, split: str) -> Any:
    raise UserError(
        f"{config.data_path} has no train.csv, val.csv or test.csv; {config.data_set} needs them."
    )


def _ucf101(config: VideoDataConfig, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    part = "train" if split == "train" else "test"
    file = _first(config, [f"{part}list{config.fold:02}.txt"])
    classes = [line.split(maxsplit=1)[1] for line in _lines(_first(config, ["classInd.txt"]))]
    paths = [re.sub(r"\s+\d+$", "", line) for line in _lines(file)]  # the test lists have no class numbers
    return [(_join(config, path), classes.index(path.split("/")[0])) for path in paths], classes


def _hmdb51(config: VideoDataConfig, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    ending = f"_test_split{config.fold}.txt"
    files = sorted(Path(config.data_path).glob(f"*{ending}"))
    if not files:
        raise UserError(f"{config.data_path} has no *{ending}; unpack the lists of HMDB51 there.")
    classes = [file.name.removesuffix(ending) for file in files]
    wanted = "1" if split == "train" else "2"
    pairs = [(number, line.rsplit(maxsplit=1)) for number, file in enumerate(files) for line in _lines(file)]
    chosen = [(number, name) for number, (name, use) in pairs if use == wanted]
    return [(_join(config, f"{classes[number]}/{name}"), number) for number, name in chosen], classes


def _ssv2(config: VideoDataConfig, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    def read(name: str) -> Any:
        return json.loads(_text(_first(config, [f"something-something-v2-{name}.json", f"{name}.json"])))

    numbers = {name: int(number) for name, number in read("labels").items()}
    clips = read("train" if split == "train" else "validation")
    endings = (".webm", ".mp4", "")  # as published, re-encoded, a folder of frames
    ending = next((e for e in endings if os.path.exists(_join(config, clips[0]["id"] + e))), ".webm")
    samples = [
        (_join(config, clip["id"] + ending), numbers[clip["template"].replace("[", "").replace("]", "")])
        for clip in clips
    ]
    return samples, sorted(numbers, key=numbers.__getitem__)


def _folders(config: VideoDataConfig, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    root = _first(config, SPLITS[split])
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    samples = []
    for number, name in enumerate(classes):
        inside = [str(path) for path in sorted((root / name).iterdir()) if _is_video(path)]
        if not inside:
            raise UserError(f"{root / name} holds no video; fill or remove it.")
        samples += [(path, number) for path in inside]
    if not samples:
        raise UserError(f"{root} holds no class folders; expected {root}/<class>/<video>.")
    return samples, classes


LOADERS = {
    "Kinetics": _kinetics,
    "Kinetics_sparse": _kinetics,
    "UCF101": _ucf101,
    "HMDB51": _hmdb51,
    "SSV2": _ssv2,
    "folder": _folders,
}


def _is_video(path: Path) -> bool:
    if path.is_dir():
        return any(image.suffix.lower() in ENDINGS and not hidden(image.name) for image in path.iterdir())
    return path.suffix.lower() in VIDEOS


def _first(config: VideoDataConfig, names: list[str] | tuple[str, ...]) -> Path:
    for name in names:
        if (path := Path(config.data_path, name)).exists():
            return path
    raise UserError(f"{config.data_path} has no {names[0]}; {config.data_set} needs it in --data_path.")


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in _text(file).splitlines() if line.strip()]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise UserError(f"{file}, line {line} is not UTF-8 text; convert the list, as with iconv.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); fetch or write the list again.") from None


def _join(config: VideoDataConfig, path: str) -> str:
    return os.path.join(config.prefix or config.data_path, path)


def _check_present(videos: Videos, config: VideoDataConfig) -> None:
    if not any(os.path.exists(path) for path in videos.paths[:FIRST]):
        raise UserError(
            f"the first videos of {config.data_path} are not there, such as {videos.path(0)}; check --prefix."
        )


def _same_classes(
    found: dict[str, Videos], config: VideoDataConfig, num_classes: int | None
) -> dict[str, Videos]:
    names = found["val"].classes
    if not names:
        top = 1 + max(int(videos.targets.max()) for videos in found.values())
        if top > (num_classes or top):
            raise UserError(
                f"{config.data_path} lists class {top - 1}, but the classes are 0 to {num_classes - 1}."
            )
        names = [str(number) for number in range(num_classes or top)]
        return {split: Videos(videos.paths, videos.targets, names) for split, videos in found.items()}
    for split, videos in found.items():
        odd = sorted(set(videos.classes) ^ set(names))
        if odd:
            raise UserError(
                f"{config.data_path}: {split} has {len(videos.classes)} classes, val {len(names)}; not in both: "
                f"{', '.join(odd[:3])}{' ...' if len(odd) > 3 else ''}. Give all splits the same classes."
            )
    return found
