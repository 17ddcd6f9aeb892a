"""A model, a data set and a run that are small enough to train in a blink."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rmeeto import MergeConfig
from rmeeto.engine import RunConfig, RunFolder, World
from rmeeto.errors import UserError

CLASSES = 6


def cpu(rank: int = 0, size: int = 1) -> World:
    return World(torch.device("cpu"), rank=rank, size=size)


def toy_model(dropout: float = 0.0, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, CLASSES))


class ToyMerging(nn.Module):
    """A linear model of the images' first 48 - r numbers, which notes at which r it is trained and evaluated."""

    def __init__(self, r=11):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.merge_config = nn.Linear(48, CLASSES), MergeConfig(r=r)
        self.seen = {"train": [], "eval": []}

    def forward(self, images):
        r = self.merge_config.r
        self.seen["train" if self.training else "eval"].append(r)
        kept = torch.arange(48) < 48 - r
        return self.head(images.flatten(1) * kept)


class ToyData:
    """Micro-batch k of an epoch, counted over all ranks, is drawn from (epoch, k) alone; rank r of w sees k = i w + r.

    Args:
        bad: global micro-batches of epoch 0 whose images are not finite.
        unreadable: evaluation samples that cannot be read.
    """

    def __init__(self, rank=0, world_size=1, total=12, batch=4, num_eval=37, bad=(), unreadable=(), fails=False):
        self.rank, self.world_size, self.batch, self.num_eval = rank, world_size, batch, num_eval
        self.batches_per_epoch = total // world_size
        self.bad, self.unreadable, self.fails = bad, set(unreadable), fails
        self.missing = 0

    def _samples(self, seed: int, count: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randint(CLASSES, (count,), generator=generator)
        images = 0.5 * torch.randn(count, 3, 4, 4, generator=generator)
        images[torch.arange(count), 0, targets % 4, targets // 4] += 2
        return images, targets

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(start, self.batches_per_epoch):
            if self.fails:
                raise UserError("image 3 cannot be read")
            number = index * self.world_size + self.rank
            images, targets = self._samples(1000 * epoch + number, self.batch)
            if epoch == 0 and number in self.bad:
                images[0] = float("nan")
            yield images, targets

    def eval_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, targets = self._samples(10**6, self.num_eval)
        own = range(self.rank, self.num_eval, self.world_size)
        self.missing = len([index for index in own if index in self.unreadable])
        own = [index for index in own if index not in self.unreadable]
        for first in range(0, len(own), 8):
            yield images[own[first : first + 8]], targets[own[first : first + 8]]

    def report(self) -> dict:
        return {"unreadable_train": 0, "unreadable_eval": self.missing, "files": []}


def toy_run(folder, **settings) -> RunConfig:
    return RunConfig(
        output_dir=str(folder),
        name="toy",
        **{"amp": "off", "log_every": 2, "checkpoint_every": 0, **settings},
    )


def toy_folder(folder, world: World | None = None) -> RunFolder:
    return RunFolder(folder / "toy", {"toy": 1}, world or cpu())
