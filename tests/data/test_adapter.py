"""Two DataLoaders as data: the order of an epoch, and a training of somebody's own model on them."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rmeeto.data.adapter import Loaders
from rmeeto.engine import DistillLoss, OptimConfig, RunConfig, RunFolder, World, fit

WORLD = World(torch.device("cpu"))


def loaders(kind: type = Loaders) -> Loaders:
    torch.manual_seed(0)
    images = torch.randn(20, 3, 4, 4)
    labelled = TensorDataset(images, (images.mean((1, 2, 3)) > 0).long())
    train = DataLoader(labelled, batch_size=4, shuffle=True, generator=torch.Generator())
    return kind(train, DataLoader(labelled, batch_size=8))


def test_an_epochs_batches_are_its_own_and_may_start_later():
    data, again = loaders(), loaders()
    first, second = (torch.cat([images for images, _ in data.train_batches(epoch)]) for epoch in (0, 1))
    assert data.batches_per_epoch == 5 and len(first) == 20
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat([images for images, _ in again.train_batches(1, 2)]), second[8:])


class Cut(Loaders):
    """The power fails in the second epoch."""

    def train_batches(self, epoch, start=0):
        for number, batch in enumerate(super().train_batches(epoch, start)):
            if (epoch, number) == (1, 4):
                raise KeyboardInterrupt
            yield batch


def test_any_model_trains_on_them_and_goes_on_where_it_was_cut(tmp_path):
    def train(name: str, epochs: int = 3, kind: type = Loaders) -> dict:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
        optim = OptimConfig(lr=1e-2, epochs=epochs, schedule="cosine", accumulation=1)
        with RunFolder(tmp_path / name, {}, WORLD) as folder:
            return fit(model, loaders(kind), DistillLoss(), optim, RunConfig(checkpoint_every=3), WORLD, folder)

    whole = train("whole")
    assert (whole["count"], whole["unreadable"], whole["steps"]) == (20, 0, 15)
    assert whole["loss"] < train("short", epochs=1)["loss"]
    with pytest.raises(KeyboardInterrupt):
        train("cut", kind=Cut)
    assert train("cut") == whole
