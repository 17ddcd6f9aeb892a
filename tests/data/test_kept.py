"""Batches that stay in a process: the same as those that are made anew, and made once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_task import datasets
from image_task.batches import EvalBatches, TrainBatches
from image_task.config import DataConfig
from image_task.data import build_data
from image_task.sources import Arrays
from rmeeto.data import kept
from rmeeto.data.kept import Kept

CONFIG = DataConfig(batch_size=16, num_workers=0, max_train_batches=4, max_eval_batches=2, mixup=0.8, reprob=0.5)


@pytest.fixture
def made(monkeypatch):
    """A process that keeps batches; counts those that are made."""
    counts = {TrainBatches: 0, EvalBatches: 0}
    monkeypatch.setattr(kept, "KEPT", Kept())
    kept.KEPT.start(1 << 24)
    for kind in counts:

        def counted(self, number, kind=kind, make=kind.__getitem__):
            counts[kind] += 1
            return make(self, number)

        monkeypatch.setattr(kind, "__getitem__", counted)
    return counts


def batches(seed: int = 0, epoch: int = 0, start: int = 0, config: DataConfig = CONFIG) -> list[torch.Tensor]:
    data = build_data(config, img_size=16, rank=0, world_size=1, seed=seed)
    return [
        part.clone() for found in (data.train_batches(epoch, start), data.eval_batches()) for b in found for part in b
    ]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_a_second_run_has_the_batches_of_the_first_and_makes_none(made, monkeypatch):
    first = batches()
    assert made == {TrainBatches: 4, EvalBatches: 2}
    assert equal(batches(), first) and equal(batches(start=1), first[2:])
    assert made == {TrainBatches: 4, EvalBatches: 2}
    monkeypatch.setattr(kept, "KEPT", Kept())
    assert equal(batches(), first) and made[TrainBatches] == 8, "a process that keeps none makes the same"


def test_another_seed_epoch_or_setting_is_made_anew(made):
    first = batches()
    assert not equal(batches(seed=1), first) and made == {TrainBatches: 8, EvalBatches: 2}
    assert not equal(batches(epoch=1), first) and made[TrainBatches] == 12
    assert not equal(batches(config=DataConfig(**{**vars(CONFIG), "reprob": 0.0})), first) and made[TrainBatches] == 16


def test_images_that_have_changed_are_made_anew(made, monkeypatch):
    images = np.zeros((64, 16, 16), np.uint8)

    def load(config: DataConfig, split: str) -> Arrays:
        return Arrays(images.copy(), np.arange(64) % 2, ["a", "b"])

    monkeypatch.setitem(datasets.LOADERS, "digits", load)
    config = DataConfig(**{**vars(CONFIG), "reprob": 0.0, "aa": "none", "data_path": "."})
    first = batches(config=config)
    assert equal(batches(config=config), first) and made[TrainBatches] == 4
    images[:] = 255
    assert not equal(batches(config=config), first) and made[TrainBatches] == 8


def test_what_does_not_fit_is_made_again(made):
    kept.KEPT.start(3 * 16 * (3 * 16 * 16 + 8) + 4096)  # three batches and their rectangles
    first = batches()
    before = dict(made)
    assert equal(batches(), first)
    again = {kind: made[kind] - before[kind] for kind in made}
    assert 0 < again[TrainBatches] < 4 and again[EvalBatches] > 0 and kept.KEPT.left >= 0
