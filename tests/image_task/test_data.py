"""Image data: purity, exact evaluation, unreadable images."""

import logging
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from image_task.config import DataConfig
from image_task.data import build_data
from image_task.datasets import load_sources
from image_task.sources import Files
from image_task.transforms import eval_transform
from rmeeto.errors import UserError

DIGITS = DataConfig(batch_size=16, num_workers=0)


def _build(config, rank=0, world_size=1, seed=0, img_size=16, train=True):
    return build_data(config, img_size=img_size, rank=rank, world_size=world_size, seed=seed, train=train)


def _images(path, **settings):
    settings = {"data_set": "IMNET", "batch_size": 4, "num_workers": 0, **settings}
    return DataConfig(data_path=str(path), **settings)


def _equal(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for pair, other in zip(ours, theirs):
        assert all(torch.equal(a, b) for a, b in zip(pair, other))


# purity


@pytest.mark.parametrize("data_set", ["digits", "IMNET"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_later_start_gives_the_tail_of_the_whole_epoch_bit_for_bit(folder, data_set, num_workers):
    config = replace(_images(folder), data_set=data_set, num_workers=num_workers, max_train_batches=6)
    whole = list(_build(config).train_batches(3))
    for start in (1, 4):
        fresh = _build(config)
        next(fresh.train_batches(0))  # whatever happened before
        _equal(fresh.train_batches(3, start), whole[start:])


def test_batches_do_not_depend_on_the_number_of_workers_nor_on_global_generators(folder):
    config = _images(folder, num_workers=0)
    expected = list(_build(config).train_batches(1))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    _equal(_build(config).train_batches(1), expected)
    for num_workers in (1, 2):
        _equal(_build(replace(config, num_workers=num_workers)).train_batches(1), expected)


def test_skipped_samples_are_never_read(folder, monkeypatch):
    data = _build(_images(folder))
    count, read = [], Files.open
    monkeypatch.setattr(Files, "open", lambda self, index: count.append(index) or read(self, index))
    list(data.train_batches(0, data.batches_per_epoch - 1))
    assert len(count) == 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_streams_stay_untouched(num_workers):
    data = _build(replace(DIGITS, num_workers=num_workers, max_train_batches=2, max_eval_batches=2))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for _ in data.train_batches(0):
        assert random.getstate() == states[0]  # in the middle of an epoch, where a model draws
        assert np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])
    list(data.eval_batches())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_seed_epoch_rank_and_batch_each_change_the_images():
    def first(seed, epoch, rank, start):
        return next(_build(DIGITS, rank=rank, world_size=2, seed=seed).train_batches(epoch, start))[0]

    base = first(0, 0, 0, 0)
    for key in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        assert not torch.equal(first(*key), base)


def test_repeats_of_a_sample_are_augmented_differently():
    config = replace(DIGITS, mixup=0, cutmix=0, batch_size=3, max_train_batches=1)
    images, targets = next(_build(config).train_batches(0))
    assert targets.unique().numel() == 1
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])


def test_repeats_on_different_ranks_are_augmented_differently_too():
    config = replace(DIGITS, mixup=0, cutmix=0, max_train_batches=1)
    first, second, third = (next(_build(config, rank, 3).train_batches(0)) for rank in range(3))
    assert torch.equal(first[1], second[1]) and torch.equal(first[1], third[1])
    assert not torch.equal(first[0][0], second[0][0]) and not torch.equal(second[0][0], third[0][0])


def test_ranks_share_an_epoch_without_overlap_and_with_equally_many_batches(folder):
    config = _images(folder, repeated_aug=False, augment=False, batch_size=2)
    ranks = [_build(config, rank, 3) for rank in range(3)]
    assert {rank.batches_per_epoch for rank in ranks} == {4}
    images = torch.cat([images for rank in ranks for images, _ in rank.train_batches(2)])
    assert len(images) == 24 and len(images.flatten(1).unique(dim=0)) == 24


# mixup


def test_targets_are_soft_with_mixup_and_classes_without():
    images, targets = next(_build(DIGITS).train_batches(0))
    assert images.shape == (16, 3, 16, 16) and images.dtype == torch.float32
    assert targets.shape == (16, 10) and torch.allclose(targets.sum(1), torch.ones(16))
    for off in ({"mixup": 0, "cutmix": 0}, {"augment": False}):
        targets = next(_build(replace(DIGITS, **off)).train_batches(0))[1]
        assert targets.shape == (16,) and targets.dtype == torch.int64


def test_cutmix_minmax_alone_mixes():
    config = replace(DIGITS, mixup=0, cutmix=0, cutmix_minmax=(0.2, 0.8), smoothing=0)
    targets = next(_build(config).train_batches(0))[1]
    assert ((targets > 0) & (targets < 1)).any()


def test_an_odd_batch_is_refused_only_with_mixup():
    with pytest.raises(UserError, match="batch_size=15.*even"):
        _build(replace(DIGITS, batch_size=15))
    _build(replace(DIGITS, batch_size=15, mixup=0, cutmix=0))


# evaluation


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_gives_every_sample_once_over_all_ranks_in_a_known_order(folder, world_size, num_workers):
    config = _images(folder, num_workers=num_workers, batch_size=3, mixup=0, cutmix=0)
    source = load_sources(config, seed=0)[1]
    transform = eval_transform(config, 16)
    seen = []
    for rank in range(world_size):
        data = _build(config, rank, world_size)
        batches = list(data.eval_batches())
        images, targets = (torch.cat(parts) for parts in zip(*batches))
        assert targets.dtype == torch.int64 and max(len(part) for part, _ in batches) <= 3
        for image, target, index in zip(images, targets.tolist(), data.eval_order):
            expected = source.read(index)
            assert torch.equal(image, transform(expected[0])) and target == expected[1]
        seen += data.eval_order
    assert sorted(seen) == list(range(10))


def test_evaluation_limit_and_a_share_without_samples(folder):
    assert len(list(_build(_images(folder, max_eval_batches=2)).eval_batches())) == 2
    assert list(_build(_images(folder), rank=11, world_size=12, train=False).eval_batches()) == []


def test_evaluation_alone_needs_no_training_folder(folder):
    for path in (folder / "train").rglob("*.jpg"):
        path.unlink()
    data = _build(_images(folder), train=False)
    assert (data.num_classes, data.num_train, data.num_eval, data.batches_per_epoch) == (2, 0, 10, 0)
    assert sum(len(targets) for _, targets in data.eval_batches()) == 10


# unreadable images


def _damage(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_takes_the_next_readable_image_and_counts_the_damaged_one_once(folder, num_workers, caplog):
    clean = _build(_images(folder, augment=False, repeated_aug=False, batch_size=24))
    order = [(image, target) for image, target in zip(*next(clean.train_batches(0)))]
    source = load_sources(_images(folder), seed=0)[0]
    _damage(folder / "train" / "ant" / "03.jpg")
    (folder / "train" / "ant" / "04.jpg").write_bytes(b"no image at all")
    config = _images(
        folder, augment=False, repeated_aug=False, batch_size=24, max_unreadable=0.1, num_workers=num_workers
    )
    data = _build(config)
    transform = eval_transform(config, 16)
    fifth = transform(source.read(5)[0])
    with caplog.at_level(logging.WARNING):
        for epoch in (0, 0):
            images, _ = next(data.train_batches(epoch))
    changed = [place for place, (image, _) in enumerate(order) if not torch.equal(image, images[place])]
    assert len(changed) == 2 and all(torch.equal(images[place], fifth) for place in changed)
    report = data.report()
    assert (report["unreadable_train"], report["unreadable_eval"]) == (2, 0)
    assert sorted(os.path.basename(name) for name in report["files"]) == ["03.jpg", "04.jpg"]
    assert len(caplog.records) == 2 and "03.jpg" in caplog.text and "np.bytes_" not in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_training_stops_above_the_share_of_unreadable_images(folder, num_workers, share):
    for index in range(3 if share else 1):
        _damage(folder / "train" / "bee" / f"{index:02}.jpg")
    data = _build(_images(folder, max_unreadable=share, num_workers=num_workers))
    with pytest.raises(UserError, match=r"of 24 training images are unreadable .* allowed .*bee/0\d.jpg"):
        for epoch in range(9):
            list(data.train_batches(epoch))


def test_no_readable_image_at_all_is_an_error_and_no_endless_search(folder):
    for path in (folder / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="24 of 24"):
        next(_build(_images(folder, max_unreadable=1.0)).train_batches(0))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_leaves_damaged_images_out_and_counts_them_in_every_pass(folder, num_workers):
    _damage(folder / "val" / "ant" / "00.jpg")
    for index in range(5):
        (folder / "val" / "bee" / f"{index:02}.jpg").write_bytes(b"")
    data = _build(_images(folder, num_workers=num_workers, batch_size=5), train=False)
    for _ in range(2):
        batches = list(data.eval_batches())
        assert [targets.tolist() for _, targets in batches] == [[0] * 4]  # a batch of damaged ones is no batch
        assert data.report()["unreadable_eval"] == 6
        assert data.eval_order == [1, 2, 3, 4]
    assert data.report()["unreadable_train"] == 0 and data.report()["files"][0].endswith("00.jpg")


def test_a_picture_that_the_transform_cannot_take_is_unreadable(folder, caplog):
    data = _build(_images(folder, augment=False, repeated_aug=False, max_unreadable=0.1, batch_size=24))
    run = eval_transform(_images(folder), 16).steps

    def steps(picture):
        image = picture.decode()
        if image.getpixel((0, 0)) == odd:
            raise OverflowError("too thin")
        return run(image)

    data._train_transform.steps = data._eval.transform.steps = steps
    train, val = load_sources(_images(folder), seed=0)
    odd = train.read(3)[0].getpixel((0, 0))
    images, _ = next(data.train_batches(0))
    assert len(images) == 24 and data.report()["unreadable_train"] == 1
    odd = val.read(3)[0].getpixel((0, 0))
    assert sum(len(targets) for _, targets in data.eval_batches()) == 9
    assert data.report()["unreadable_eval"] == 1 and "OverflowError('too thin')" in caplog.text


def test_a_pipe_among_the_images_is_unreadable_and_nothing_waits_for_it(folder):
    for split in ("train", "val"):
        (folder / split / "ant" / "01.jpg").unlink()
        os.mkfifo(folder / split / "ant" / "01.jpg")
    data = _build(_images(folder, max_unreadable=0.1))
    assert len(list(data.train_batches(0))) == 6
    assert sum(len(targets) for _, targets in data.eval_batches()) == 9
    assert data.report()["unreadable_eval"] == 1


def test_the_engine_counts_damaged_images_as_wrong_in_every_evaluation(folder):
    from rmeeto.engine import World, evaluate

    _damage(folder / "val" / "ant" / "00.jpg")
    data = _build(_images(folder), train=False)
    always_ant = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    always_ant[1].weight.data.zero_()
    always_ant[1].bias.data.copy_(torch.tensor([1.0, 0.0]))
    for _ in range(2):
        result = evaluate(always_ant, data, World(torch.device("cpu")))
        assert (result["count"], result["unreadable"], result["top1"]) == (10, 1, 40.0)


@pytest.mark.parametrize("end", [lambda: os._exit(3), lambda: os.kill(os.getpid(), signal.SIGBUS)])
def test_a_worker_that_is_gone_ends_the_epoch_with_one_line(folder, monkeypatch, end):
    monkeypatch.setattr(Files, "open", lambda self, index: end())
    with pytest.raises(UserError, match=r"that loads data is gone .*shared memory.*num_workers.*run.resume"):
        next(_build(_images(folder, num_workers=1)).train_batches(0))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_our_own_in_a_worker_is_not_taken_for_a_lost_one(folder, monkeypatch, num_workers):
    def broken(*_):
        raise RuntimeError("our fault")

    monkeypatch.setattr("image_task.batches.seed_globals", broken)
    with pytest.raises(RuntimeError, match="our fault"):
        next(_build(_images(folder, num_workers=num_workers)).train_batches(0))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_four_micro_batches_a_step_are_the_same_in_any_number_of_processes(world_size):
    """Which images, how they are augmented and mixed: all is the micro-batch's own."""
    settings = {"img_size": 16, "seed": 3}
    expected = [[*build_data(DIGITS, rank=rank, world_size=4, **settings).train_batches(1)][:2] for rank in range(4)]
    for rank in range(world_size):
        split = {"rank": rank, "world_size": world_size, "accumulation": 4 // world_size}
        data = build_data(DIGITS, **split, **settings)
        for number, batch in zip(range(8 // world_size), data.train_batches(1)):
            step, index = divmod(number, 4 // world_size)
            _equal([batch], [expected[index * world_size + rank][step]])
