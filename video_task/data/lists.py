"""Which videos a data set holds, by its lists or its folders."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmeeto.errors import UserError
from video_task.config import VideoDataConfig
from video_task.data.decode import IMAGES

VIDEOS = ".mp4 .webm .avi .mkv .mov .m4v .mpg .mpeg .ogv .flv .wmv .ts .3gp .gif".split()
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
    if config.data_set not in LOADERS:
        raise UserError(f"--data_set is {config.data_set!r}; known are {', '.join(LOADERS)}.")
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


def _csv(config: VideoDataConfig, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    file = _first(config, [f"{name}.csv" for name in SPLITS[split]])
    samples: list[tuple[str, int]] = []
    columns = 2
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not (line := line.strip()):
            continue
        if not samples and _counts_frames(line, config):
            columns = 3
        fields = line.rsplit(config.split, columns - 1)
        if len(fields) < columns or not fields[-1].strip().isdecimal():
            raise UserError(
                f"{file}, line {number} is {line!r}; expected <path>{config.split}<class number>, see --split."
            )
        samples.append((_join(config, fields[0]), int(fields[-1])))
    if not samples:
        raise UserError(f"{file} lists no video; expected lines of <path>{config.split}<class number>.")
    return samples, []


def _counts_frames(line: str, config: VideoDataConfig) -> bool:
    path, *between = line.rsplit(config.split, 2)
    return len(between) == 2 and between[0].isdecimal() and os.path.isdir(_join(config, path))


def _kinetics(config: VideoDataConfig, split: str) -> Any:
    raise UserError(
        f"{config.data_path} has no train.csv, val.csv or test.csv; {config.data_set} needs them."
    )


def _ucf101(config: VideoDataConfig, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    part = "train" if split == "train" else "test"
    file = _first(config, [f"{part}list{config.fold:02}.txt"])
    classes = [line.split()[1] for line in _lines(_first(config, ["classInd.txt"]))]
    paths = [line.split()[0] for line in _lines(file)]
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
        return json.loads(_first(config, [f"something-something-v2-{name}.json", f"{name}.json"]).read_text())

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
        return any(image.suffix.lower() in IMAGES for image in path.iterdir())
    return path.suffix.lower() in VIDEOS


def _first(config: VideoDataConfig, names: list[str] | tuple[str, ...]) -> Path:
    for name in names:
        if (path := Path(config.data_path, name)).exists():
            return path
    raise UserError(f"{config.data_path} has no {names[0]}; {config.data_set} needs it in --data_path.")


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line.strip()]


def _join(config: VideoDataConfig, path: str) -> str:
    return os.path.join(config.prefix or config.data_path, path)


def _check_present(videos: Videos, config: VideoDataConfig) -> None:
    if not any(os.path.exists(path) for path in videos.paths[:8]):
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
