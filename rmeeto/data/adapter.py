"""Any two DataLoaders as data for `rmeeto.engine.fit`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from torch import Tensor
from torch.utils.data import DataLoader


class Loaders:
    """A training and an evaluation loader of (images, targets); see `rmeeto.engine.Data`.

    Args:
        train: of equal length on every process. Where it shuffles, give it a `torch.Generator` or a
            `DistributedSampler`: seeded with the epoch, it shuffles a resumed run alike. (The random numbers of its
            augmentation are its own affair.)
        evaluation: this process's share, each sample exactly once over all processes; targets are class indices.

    Example:
        fit(model, Loaders(train, val), DistillLoss(), OptimConfig(epochs=3), RunConfig(), world, folder)
    """

    def __init__(self, train: DataLoader, evaluation: DataLoader) -> None:
        self._train, self._evaluation = train, evaluation
        self.batches_per_epoch = len(train)

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches start, start + 1, ... of an epoch; those before are loaded and dropped."""
        if self._train.generator is not None:
            self._train.generator.manual_seed(epoch)
        if hasattr(self._train.sampler, "set_epoch"):
            self._train.sampler.set_epoch(epoch)
        return islice(self._train, start, None)

    def eval_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The evaluation loader's batches."""
        return iter(self._evaluation)
