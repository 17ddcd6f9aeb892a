"""Shards that processes read: every picture once, through changes of their number, each process its own files."""

import numpy as np
import pytest
import torch
from PIL import Image

from image_task import shards
from image_task.config import DataConfig
from image_task.data import build_data
from image_task.flags import parse
from rmeeto.errors import UserError

MICRO_BATCHES, BATCH, STEPS, EPOCH = 12, 2, 4, 5
COUNT = MICRO_BATCHES * BATCH * STEPS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of pictures of one colour each, and shards of eight of them."""
    folder = tmp_path_factory.mktemp("feeding")
    for split, count in (("train", COUNT), ("val", 4)):
        for number in range(count):
            path = folder / "photos" / split / ("ant", "bee")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (2 * number, 255 - 2 * number, number % 7)).save(path)
    shards.make(folder / "photos", folder / "shards", shards.Recipe(size=8))
    return folder


def _config(folder, kind, **settings):
    place = folder / ("shards" if kind == "tar" else "photos")
    usual = {"batch_size": BATCH, "num_workers": 0, "repeated_aug": False, "data_set": kind}
    return DataConfig(data_path=str(place), **{**usual, **settings})


def _build(config, rank=0, world_size=1, accumulation=1):
    place = {"rank": rank, "world_size": world_size, "accumulation": accumulation}
    return build_data(config, img_size=16, seed=1, **place)


def _steps(config, world_size, first, last):
    """What all processes see in optimizer steps first ... last - 1: micro-batches by step and number."""
    accumulation, seen = MICRO_BATCHES // world_size, {}
    for rank in range(world_size):
        data = _build(config, rank, world_size, accumulation)
        assert data.batches_per_epoch == STEPS * accumulation
        for number, batch in enumerate(data.train_batches(EPOCH, first * accumulation), first * accumulation):
            step, index = divmod(number, accumulation)
            if step < last:
                seen[step, index * world_size + rank] = batch
    return seen


@pytest.mark.parametrize(("kind", "local"), [("folder", False), ("tar", False), ("tar", True)])
def test_four_then_two_then_three_processes_see_every_picture_once(made, kind, local):
    config = _config(made, kind, local_shards=local, augment=False)
    seen = {**_steps(config, 4, 0, 1), **_steps(config, 2, 1, 2), **_steps(config, 3, 2, STEPS)}
    assert len(seen) == MICRO_BATCHES * STEPS
    pictures = torch.cat([images for images, _ in seen.values()])[:, :, 0, 0]
    assert len(pictures) == COUNT == len(pictures.unique(dim=0))


@pytest.mark.parametrize("local", [False, True])
def test_the_micro_batches_are_those_of_any_number_of_processes_to_the_last_bit(made, local):
    config = _config(made, "tar", local_shards=local)  # augmented, erased and mixed
    expected = _steps(config, 12, 0, STEPS)
    for world_size, first in ((4, 1), (2, 2), (3, 0), (1, 3)):
        found = _steps(config, world_size, first, STEPS)
        assert found.keys() == {place for place in expected if place[0] >= first}
        for place, batch in found.items():
            assert all(torch.equal(*pair) for pair in zip(batch, expected[place]))


def test_each_process_reads_tar_files_of_its_own(made):
    config = _config(made, "tar", local_shards=True, augment=False)
    read = []
    for rank in range(4):
        data = _build(config, rank, 4)
        places = data._train_source.files()
        read.append(set(places[data.batches(EPOCH).indices.numpy()]))
    assert [len(files) for files in read] == [3] * 4 and set.union(*read) == set(range(12))
    whole = _config(made, "tar", augment=False)
    assert len(set(places[_build(whole, 0, 4).batches(EPOCH).indices.numpy()])) > 8


def test_held_out_pictures_are_in_no_processes_files(made):
    data = _build(_config(made, "tar", local_shards=True, augment=False, holdout=16))
    assert data.num_eval == 16 and len(data._train_source.files()) == COUNT - 16
    names = {data._train_source.name(int(index)) for index in data.batches(0).indices}
    held = {data._eval.source.name(index) for index in range(16)}
    assert len(names) == COUNT - 16 and not names & held


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("folder", {}, "data.local_shards, but the images of 'folder' are no tar files'"),
        ("tar", {"repeated_aug": True}, "data.local_shards and data.repeated_aug"),
    ],
)
def test_files_of_ones_own_are_refused_where_they_cannot_be(made, kind, settings, message):
    with pytest.raises(UserError, match=message):
        _build(_config(made, kind, local_shards=True, **settings))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data_set folder --repeated_aug False", "--local_shards .*belongs to .*tar"),
        ("--data_set tar", "--local_shards .*repeated_aug is on"),
    ],
)
def test_a_flag_without_effect_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        parse(["--data_path", "d", "--local_shards", *flags.split()])


def test_pictures_in_shards_are_evaluated_as_those_in_the_folder(made):
    ours, theirs = (
        torch.cat([images for images, _ in _build(_config(made, kind), 0, 1).eval_batches()])
        for kind in ("tar", "folder")
    )
    assert np.array_equal(*(np.sort(images.flatten(1).numpy(), axis=0) for images in (ours, theirs)))
