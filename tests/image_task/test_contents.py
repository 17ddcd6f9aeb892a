"""What a training set consists of is seen to change with each file of it, and with nothing else."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from image_task.config import DataConfig
from image_task.data import build_data


def contents(path, data_set="IMNET"):
    config = DataConfig(data_path=str(path), data_set=data_set, batch_size=4, num_workers=0)
    return build_data(config, img_size=16, rank=0, world_size=1, seed=0).contents()


def replaced(train):
    shutil.copy(train / "bee" / "03.jpg", train / "ant" / "03.jpg")
    return {"ant"}


def added(train):
    shutil.copy(train / "ant" / "03.jpg", train / "ant" / "99.jpg")
    return {"ant"}


def moved(train):
    (train / "ant" / "03.jpg").rename(train / "bee" / "99.jpg")
    return {"ant", "bee"}


def removed(train):
    (train / "bee" / "03.jpg").unlink()
    return {"bee"}


def renamed(train):
    (train / "bee" / "03.jpg").rename(train / "bee" / "0.jpg")
    return {"bee"}


@pytest.mark.parametrize("change", [replaced, added, moved, removed, renamed])
def test_each_change_is_seen_in_its_class(folder, change):
    before = contents(folder)
    assert before.keys() == {"ant", "bee"} and {count for count, _ in before.values()} == {12}
    expected = change(folder / "train")
    after = contents(folder)
    assert {name for name in before if before[name] != after[name]} == expected


def test_data_that_have_moved_and_other_images_to_evaluate_are_the_same(folder):
    before = contents(folder)
    (folder / "val" / "ant" / "03.jpg").unlink()
    assert contents(folder.rename(folder.with_name("elsewhere"))) == before


@pytest.mark.parametrize("gone", [False, True])
def test_a_link_that_leads_nowhere_is_counted(folder, gone):
    path = folder / "train" / "ant" / "03.jpg"
    path.unlink()
    path.symlink_to(folder / "nowhere" if gone else folder / "train" / "ant" / "04.jpg")
    assert contents(folder)["ant"][0] == 12


def test_images_in_memory_are_told_by_their_pixels():
    data = build_data(DataConfig(num_workers=0), img_size=16, rank=0, world_size=1, seed=0)
    before = data.contents()
    assert sum(count for count, _ in before.values()) == data.num_train
    source = data._train_source
    source.images[np.flatnonzero(source.targets == 3)[0], 0, 0] ^= 255
    assert {name for name, found in data.contents().items() if found != before[name]} == {"3"}
