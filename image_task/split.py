"""A folder of classes alone becomes one to train on and one to choose by."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from rmeeto.data.classes import LeftOut, files_below, in_order, subfolders
from rmeeto.data.pictures import ENDINGS
from rmeeto.errors import UserError, shown

EVERY = 5  # one picture of so many, of each class, is not trained on


def make_split(pictures: Path, folder: Path) -> Path:
    """Make ``train/<class>/`` and ``val/<class>/`` of links to the pictures in ``<class>/``: every fifth is in val/.

    The same pictures are always divided the same way. A folder of links to them that is there already stays as it is.

    Args:
        pictures: holds the classes.
        folder: takes the links.

    Returns:
        The folder.

    Raises:
        UserError: there are no classes, one of fewer than two pictures, or a folder of links to others.
    """
    if not pictures.is_dir():
        raise UserError(f"{pictures} is no folder; give one of pictures, in a folder for each class.")
    classes = in_order(subfolders(pictures))
    if not classes:
        raise UserError(f"{pictures} holds no folders; expected {pictures}/<class>/<image>.")
    if folder.exists():
        _check_links(folder, pictures)
        return folder
    left_out = LeftOut()
    counts, part_way = {"train": 0, "val": 0}, folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part_way, ignore_errors=True)  # of a call that was cut short
    for name in classes:
        files = []
        for path in files_below(pictures / name):
            if os.path.splitext(path)[1].lower() in ENDINGS:
                files.append(path)
            else:
                left_out.add(path, "other endings")
        if len(files) < 2:
            raise UserError(f"{pictures / name} holds {len(files)} pictures; expected at least 2: fill or remove it.")
        taken = set[str]()
        random.Random(0).shuffle(files)
        held = -(-len(files) // EVERY)
        for split, part in (("val", files[:held]), ("train", files[held:])):
            (part_way / split / name).mkdir(parents=True)
            for path in part:
                link = os.path.relpath(path, pictures / name).replace(os.sep, "-")
                while link in taken:  # a/b.jpg beside a-b.jpg
                    link = f"-{link}"
                taken.add(link)
                os.symlink(os.path.abspath(path), part_way / split / name / link)
            counts[split] += len(part)
    part_way.rename(folder)
    left_out.say(str(pictures))
    print(
        f"note: {shown(pictures)} has no train/ and val/: {counts['val']} of its {sum(counts.values())} pictures are "
        f"kept to choose\n      the best epoch by, in {shown(folder)}",
        flush=True,
    )
    return folder


def _check_links(folder: Path, pictures: Path) -> None:
    """Refuse a folder of links to pictures that are elsewhere."""
    for parts in (folder / split for split in ("train", "val") if (folder / split).is_dir()):
        for link in (next((parts / name).iterdir(), None) for name in subfolders(parts)):
            if link is not None and not any(_same(parent, pictures) for parent in Path(os.readlink(link)).parents):
                raise UserError(f"{folder} links to pictures outside {pictures}; give theirs, or another --output_dir.")


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)
