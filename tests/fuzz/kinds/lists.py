"""Lists of videos and images: .csv, the official lists of UCF101, HMDB51 and SSV2, iNaturalist's JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from random import Random

from image_task.config import DataConfig
from image_task.datasets import load_sources
from rmeeto.errors import UserError
from tests.fuzz.case import Case, Kind, Refused, Wrong
from tests.fuzz.mutate import ABSOLUTE, OUTSIDE, URL, some_bytes, some_json, some_text
from tests.fuzz.programs import ODD, files_of, folder, unpack
from video_task.config import VideoDataConfig
from video_task.data.lists import load_videos

WORDS = [
    "v/a.mp4 0",
    "v/b c.mp4 1",
    "v/a.mp4",
    "0",
    "1",
    "-1",
    "10 2",
    "99999999999999999999",
    "٣",
    OUTSIDE + " 0",
    URL + " 1",
]
LISTS = {
    "Kinetics": {f"{split}.csv": b"v/a.mp4 0\nv/b c.mp4 1\nv/a.mp4 2\n" for split in ("train", "val", "test")},
    "Kinetics_sparse": {f"{split}.csv": b"v/a.mp4 16 0\nv/b c.mp4 24 1\n" for split in ("train", "val")},
    "UCF101": {
        "classInd.txt": b"1 v\n2 w\n", "trainlist01.txt": b"v/a.mp4 1\nw/d.avi 2\n", "testlist01.txt": b"v/b c.mp4\n",
    },
    "HMDB51": {f"{name}_test_split1.txt": b"a.mp4 1\nb c.mp4 2\n" for name in ("v", "w")},
    "SSV2": {
        "labels.json": b'{"Moving something": "0", "Lifting something": "1"}',
        "train.json": b'[{"id": "v/a", "template": "Moving [something]"}, '
        b'{"id": "v/b c", "template": "Lifting [something]"}]',
        "validation.json": b'[{"id": "v/a", "template": "Moving [something]"}]',
    },
    "INAT18": {
        f"{split}2018.json": json.dumps({
            "images": [{"id": 7, "file_name": "v/a.jpg"}, {"id": 8, "file_name": "v/b.jpg"}],
            "annotations": [{"image_id": 7, "category_id": 3}, {"image_id": 8, "category_id": 4}],
            "categories": [{"id": 3, "name": "ant", "order": "x"}, {"id": 4, "name": "bee", "order": "x"}],
        }).encode()
        for split in ("train", "val")
    },
}  # fmt: skip
PRESENT = ("v/a.mp4", "v/b c.mp4", "v/a.webm", "w/d.avi", "w/a.mp4", "w/b c.mp4", "v/a.jpg", "v/b.jpg")


def seeds() -> Mapping[str, bytes]:
    return {name: folder(files) for name, files in LISTS.items()}


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    seed = rng.choice(list(seeds))
    files = dict(LISTS[seed])
    more = {"split": rng.choice((" ", " ", " ", ",", "\\t", "", "1"))} if rng.random() < 0.1 else {}
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(files))
        content = files[name]
        if rng.random() < 0.05 or not isinstance(content, bytes):
            files[name] = rng.choice(ODD)
        elif rng.random() < 0.03:
            del files[name]
            files = files or {"x": b""}
        elif name.endswith("json") and rng.random() < 0.9:
            files[name] = some_json(
                rng, content, {"id": ABSOLUTE, "template": "x", "name": 5, "file_name": URL, "image_id": []}
            )
        elif rng.random() < 0.6:
            lines = content.decode(errors="replace").split("\n")
            at = rng.randrange(len(lines))
            line = some_text(rng, WORDS) if rng.random() < 0.7 else f"{some_text(rng, WORDS)} {some_text(rng, WORDS)}"
            lines[at : at + rng.randrange(2)] = [line] * rng.choice((1, 1, 1, 500))
            ends = rng.choice(("\n", "\n", "\r\n", "\r", "\u2028"))
            files[name] = ends.join(lines).encode(errors="surrogatepass")
        else:
            files[name] = some_bytes(rng, content)
    return Case(folder(files), seed, more=more)


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    unpack(case.data, Path("d"))
    for name in PRESENT:
        Path("d", name).parent.mkdir(parents=True, exist_ok=True)
        Path("d", name).touch()
    try:
        if case.seed.startswith("INAT"):
            train, val = load_sources(DataConfig(data_set=case.seed, data_path="d"), seed=0)
            _fits(train.targets, train.classes)
            _fits(val.targets, val.classes)
            return f"{len(train)} images"
        separator = case.more.get("split", " ")
        found = load_videos(VideoDataConfig(data_set=case.seed, data_path="d", split=separator))
    except UserError as error:
        raise Refused(str(error)) from None
    for videos in found.values():
        _fits(videos.targets, videos.classes)
    if case.seed.startswith("Kinetics"):
        _same_as_text(files_of(case.data)["train.csv"], found["train"], separator.replace("\\t", "\t"))
    return f"{len(found['train'])} videos"


def _fits(targets: list[int], classes: list[str]) -> None:
    if len(targets) == 0 or min(targets) < 0 or max(targets) >= len(classes):
        raise Wrong(f"targets {targets!r} of {len(classes)} classes")


def _same_as_text(text: object, videos: object, separator: str) -> None:
    if not isinstance(text, bytes):
        return
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text.decode("utf-8-sig"))]
    lines = [line for line in lines if line]
    if len(lines) != len(videos):
        raise Wrong(f"{len(lines)} lines were made {len(videos)} videos")
    for number, line in enumerate(lines):
        path, _, target = line.rpartition(separator)
        got, paths = videos.path(number), (path, path.strip(), path.rpartition(separator)[0].strip())
        same = any(os.path.join("d", name) == got for name in paths) or '"' in line
        if int(target.strip('" ')) != videos.targets[number] or not same:
            raise Wrong(f"line {line!r} was made {got!r} of class {videos.targets[number]}")


KIND = Kind(seeds, mutate, check, weight=15, batch=40)
