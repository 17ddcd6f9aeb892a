"""Which videos a data set holds, by its lists or its folders."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmeeto.data.classes import LeftOut, as_labelled, check_text, check_used, in_order, numbered, read_lines, subfolders
from rmeeto.data.pictures import ENDINGS, check_regular, hidden
from rmeeto.errors import UserError, shown
from rmeeto.json_file import parse_json
from video_task.config import VideoDataConfig

VIDEOS = (
    ".mp4 .webm .avi .mkv .mov .m4v .mpg .mpeg .ogv .flv .wmv .ts .3gp .gif .mts .m2ts .3g2 .asf .divx .vob .mxf "
    ".f4v .m2v"
).split()
DIGITS = 18  # of a class number
FIRST = 8  # so many lines of a list are looked at to see what it is
SPLITS = {"train": ("train",), "val": ("val", "validation", "test"), "test": ("test", "val", "validation")}


logger = logging.getLogger(__name__)


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
    config: VideoDataConfig,
    *,
    train: bool = True,
    num_classes: int | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, Videos]:
    """Open the lists of a data set; no video is opened.

    Every data set but `folder` may come as train.csv, val.csv and test.csv, lines of path, separator and class
    number; a list of frame folders may have their numbers of frames in between (which are not read: the folder is).
    A path in double quotes, as csv and pandas write one that holds the separator, or with blanks around it stands for
    the path without them, unless there is one with them; numbers may be quoted too. UCF101, HMDB51 and SSV2 may come as
    their own lists instead. A missing val or test list is replaced by the other. Val and test may lack classes of the
    training split; a line says so.

    Args:
        config: data_set, data_path, prefix, split and fold are read.
        train: False leaves the training videos out.
        num_classes: of lists whose classes have no names; None counts up to the largest number in them.
        labels: names of the weights' outputs, where they are known; the classes are numbered as they are.

    Returns:
        The videos of "train" (if asked for), "val" and "test", all with the same classes.

    Raises:
        UserError: an unknown name, missing, empty or malformed lists, videos that are not where the lists say.
    """
    folder = Path(config.data_path)
    check_data_set(config)
    if not config.data_path:  # Path("") would be the current folder
        raise UserError(f"--data_path is not given; give the folder that holds {config.data_set}.")
    if not os.path.isdir(folder):
        raise UserError(f"--data_path {config.data_path!r} is no folder; give the one that holds the lists.")
    listed = config.data_set != "folder" and any((folder / f"{split}.csv").exists() for split in SPLITS)
    load = _csv if listed else LOADERS[config.data_set]
    found: dict[str, Videos] = {}
    for split in ("train", "val", "test") if train else ("val", "test"):
        try:
            samples, classes = load(config, split)
        except UserError:
            raise
        except (
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
            OSError,
        ) as error:
            raise UserError(
                f"{folder}: the {split} list of {config.data_set} is not as published ({repr(error)[:200]}); fetch it "
                "again."
            ) from error
        if not samples:
            raise UserError(f"{folder}: the {split} list of {config.data_set} lists no video; fetch it again.")
        paths, targets = zip(*samples)
        found[split] = Videos(np.array([os.fsencode(p) for p in paths]), np.array(targets), classes)
        _check_present(found[split], config)
    return _same_classes(found, config, num_classes, labels)


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
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(_text(file)), 1)]
    lines = [(number, line) for number, line in lines if line]
    columns = _columns([line for _, line in lines[:FIRST]], separator, config)
    expected = separator.join(columns).replace("\t", r"\t")
    if not lines:
        raise UserError(f"{file} lists no video; expected lines of {expected}.")
    samples: list[tuple[str, int]] = []
    for number, line in lines:
        path, *counts = line.rsplit(separator, len(columns) - 1)
        counts = list(map(_number, counts))
        if len(counts) < len(columns) - 1 or not all(map(str.isdecimal, counts)) or "\0" in line:
            raise UserError(f"{file}, line {number} is {line[:200]!r}; expected {expected}, see --split.")
        if len(label := counts[-1]) > DIGITS:
            raise UserError(f"{file}, line {number}: {label[:DIGITS]}... is no class number; expected one from 0 on.")
        samples.append((_bare(config, path), int(label)))
        if number <= FIRST and len(columns) == 3:
            _compare(Path(samples[-1][0]), counts[0], file, number)
    return samples, []


def _compare(clip: Path, count: str, file: Path, line: int) -> None:
    """Warn where what is taken for a number of frames is another number."""
    if clip.is_file():
        logger.warning("%s, line %d: of two numbers behind a video the last one is its class", shown(file), line)
    elif clip.is_dir() and (there := sum(map(_is_image, clip.iterdir()))) != int(count):
        logger.warning("%s, line %d says %s frames, the folder has %d", shown(file), line, count, there)


def _bare(config: VideoDataConfig, path: str) -> str:
    """Where a path leads as it stands, or without what a writer of lists puts around it."""
    joined, bare = _join(config, path), path.strip()
    if len(bare) > 2 and bare[0] == bare[-1] == '"':
        bare = bare[1:-1].replace('""', '"')
    return joined if bare == path or os.path.exists(joined) else _join(config, bare)


def _number(text: str) -> str:
    """A number without what a writer of lists puts around it."""
    text = text.strip()
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' else text


def _columns(lines: list[str], separator: str, config: VideoDataConfig) -> list[str]:
    """What a list's lines hold: where most end in two numbers, the former counts frames, or is part of the path."""
    plain, counted = ["<path>", "<class number>"], ["<path>", "<frames>", "<class number>"]
    endings = [list(map(_number, line.rsplit(separator, 2)[1:])) for line in lines]
    numbered = [len(ending) == 2 and all(map(str.isdecimal, ending)) for ending in endings]
    if 2 * sum(numbered) <= len(lines):
        return plain

    def present(columns: list[str]) -> int:
        paths = (line.rsplit(separator, len(columns) - 1)[0] for line in lines)
        return sum(os.path.exists(_join(config, path)) for path in paths)

    return max(counted, plain, key=present)


def _kinetics(config: VideoDataConfig, split: str) -> Any:
    raise UserError(f"{config.data_path} has no train.csv, val.csv or test.csv; {config.data_set} needs them.")


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
        return parse_json(_text(_first(config, [f"something-something-v2-{name}.json", f"{name}.json"])).encode())

    numbers = {name: int(number) for name, number in dict(read("labels")).items()}
    if sorted(numbers.values()) != [*range(len(numbers))]:
        raise ValueError("its labels are not numbered from 0 on, each once")
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
    classes = in_order(subfolders(root))
    samples, left_out = [], LeftOut()
    for number, name in enumerate(classes):
        inside = []
        for path in sorted((root / name).iterdir()):
            if _is_video(path):
                inside.append(str(path))
            elif not hidden(path.name):
                left_out.add(str(path), "neither a video of a known ending nor a folder of images")
        if not inside:
            left_out.say(str(root))
            raise UserError(f"{root / name} holds no video; fill or remove it.")
        samples += [(path, number) for path in inside]
    left_out.say(str(root))
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
    if hidden(path.name):
        return False
    if path.is_dir():
        return any(map(_is_image, path.iterdir()))
    return path.suffix.lower() in VIDEOS


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not hidden(path.name)


def _first(config: VideoDataConfig, names: list[str] | tuple[str, ...]) -> Path:
    for name in names:
        if (path := Path(config.data_path, name)).exists():
            return path
    raise UserError(f"{config.data_path} has no {names[0]}; {config.data_set} needs it in --data_path.")


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in read_lines(_text(file)) if line.strip()]


def _text(file: Path) -> str:
    try:
        check_regular(file)
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise UserError(f"{file}, line {line} is not UTF-8 text; convert the list, as with iconv.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); fetch or write the list again.") from None


def _join(config: VideoDataConfig, path: str) -> str:
    return os.path.join(config.prefix or config.data_path, path)


def _check_present(videos: Videos, config: VideoDataConfig) -> None:
    if not any(os.path.exists(path) for path in videos.paths[:FIRST]):
        raise UserError(
            f"the first videos of {config.data_path} are not there, such as {videos.path(0)}; check --prefix."
        )


def _same_classes(
    found: dict[str, Videos], config: VideoDataConfig, num_classes: int | None, labels: Sequence[str] | None
) -> dict[str, Videos]:
    """The splits with the same classes: those of the training split where it is there, else of val."""
    names = found["train" if "train" in found else "val"].classes
    trained = Path(config.data_path, "train")
    if config.data_set == "folder" and "train" not in found and trained.is_dir():
        folders = in_order(subfolders(trained))
        names = folders if set(names) <= set(folders) else names
    if not names:
        targets = np.concatenate([videos.targets for videos in found.values()])
        if num_classes is None:
            names = numbered(targets.tolist(), config.data_path)
        elif (top := int(targets.max())) >= num_classes:
            raise UserError(f"{config.data_path} lists class {top}, but the classes are 0 to {num_classes - 1}.")
        else:
            names = [str(number) for number in range(num_classes)]
        found = {split: Videos(videos.paths, videos.targets, names) for split, videos in found.items()}
    check_text(names if "train" in found else (), config.data_path)
    if labels is not None:
        names = as_labelled(names, labels, config.data_path)
    number = {name: index for index, name in enumerate(names)}
    same = {}
    for split, videos in found.items():
        odd = [name for name in videos.classes if name not in number]
        if odd:
            raise UserError(
                f"{config.data_path}: {split} has {len(odd)} classes that are not among the {len(names)} of "
                f"{'train' if 'train' in found else 'val'}: {', '.join(odd[:3])}{' ...' if len(odd) > 3 else ''}. "
                "Move or remove them."
            )
        targets = np.array([number[name] for name in videos.classes])[videos.targets]
        if split in ("train", "val"):
            check_used(targets, names, f"{config.data_path}: {split}")
        same[split] = Videos(videos.paths, targets, names)
    return same
