"""What data sets share: the loader by batch number, the account of unreadable samples, augmentation helpers."""

import logging
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch.utils.data import Dataset

from rmeeto.data.augment import allow_black, build_mixup
from rmeeto.data.loading import Unread, Unreadable, load_batches
from rmeeto.errors import UserError


class _Numbers(Dataset):
    def __getitem__(self, number):
        return torch.full((2,), number)


def _samples(*indices):
    return [Unreadable(index, f"{index}.jpg", "cut short") for index in indices]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_batches_come_in_the_order_of_their_numbers_and_draw_nothing(num_workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loader = load_batches(_Numbers(), range(3, 8), num_workers=num_workers, pin_memory=True, prefetch=1)
    assert [batch.tolist() for batch in loader] == [[n, n] for n in range(3, 8)]
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(load_batches(_Numbers(), range(2, 2), num_workers=num_workers, pin_memory=False))


def test_training_counts_distinct_samples_and_stops_above_the_share():
    unread = Unread("clip", 40, 0.05)
    unread.in_training(_samples(7, 7))
    unread.in_training(_samples(7, 8))
    assert unread.report()["unreadable_train"] == 2
    with pytest.raises(UserError, match=r"3 of 40 training clips are unreadable \(7\.50%, allowed 5\.00%\).*7\.jpg"):
        unread.in_training(_samples(9))


def test_training_stops_where_no_replacement_was_found():
    with pytest.raises(UserError, match="1 of 40 training images"):
        Unread("image", 40, 1.0).in_training(_samples(1), stop=True)


def test_every_evaluation_counts_anew_and_every_name_is_logged_once(caplog):
    unread = Unread("image", 40, 0.05)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            unread.start("eval")
            unread.in_evaluation("eval", _samples(1))
            unread.in_evaluation("eval", _samples(2))
    assert unread.report("eval", "test") == {
        "unreadable_train": 0,
        "unreadable_eval": 2,
        "unreadable_test": 0,
        "files": ["1.jpg", "2.jpg"],
    }
    assert [record.message for record in caplog.records] == [
        f"unreadable image {n}.jpg (cut short): it counts as wrong" for n in (1, 2)
    ]


def test_posterize_may_keep_no_bit():
    policy = rand_augment_transform("rand-m10-inc1", {})
    allow_black(policy)
    step = next(op for op in policy.ops if op.name == "PosterizeIncreasing")
    step.prob, grey = 1.0, Image.new("RGB", (4, 4), (200, 100, 50))
    assert step(grey).getextrema() == ((0, 0),) * 3
    step.magnitude = 0
    assert step(grey).getextrema() == ((192, 192), (96, 96), (48, 48))


def test_mixup_is_built_only_where_it_is_on_and_the_batch_is_even():
    settings = {
        "mixup": 0.8,
        "cutmix": 1.0,
        "cutmix_minmax": None,
        "mixup_prob": 1.0,
        "mixup_switch_prob": 0.5,
    }
    config = SimpleNamespace(mixes=True, mixup_mode="batch", smoothing=0.1, **settings)
    assert build_mixup(config, 10, 4, 16).num_classes == 10
    with pytest.raises(UserError, match="even"):
        build_mixup(config, 10, 3, 16)
    config.cutmix_minmax = (0.5, 0.51)
    assert build_mixup(config, 10, 4, 224).num_classes == 10
    with pytest.raises(UserError, match="both 8 of 16 pixels; give shares further apart"):
        build_mixup(config, 10, 4, 16)
    config.mixes = False
    assert build_mixup(config, 10, 3, 16) is None
