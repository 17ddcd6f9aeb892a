"""Which samples a rank sees, in which order, and the random numbers that belong to each of them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


def repeated_augmentation_indices(
    length: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    *,
    seed: int = 0,
    repeats: int = 3,
    selected_round: int = 256,
) -> torch.Tensor:
    """Indices of one rank's epoch under repeated augmentation: the repeats of a sample go to different ranks.

    Every index stands `repeats` times in a row, the list is strided by rank, and an epoch is cut to the
    length of the data set, not of the list, so it sees about a third of the samples three times each.

    Args:
        length: number of samples of the data set.
        epoch: seeds the permutation (alone for seed 0, together with `seed` otherwise).
        rank, world_size: which share.
        seed: of the run.
        repeats: how often an index is repeated.
        selected_round: an epoch is cut to a multiple of this over all ranks; a data set below it gives
            nothing. 1 keeps every sample.

    Returns:
        (num_selected,) int64, equally many on every rank.

    Source: Hoffer et al., arXiv 1901.09335; the sampler of DeiT and timm's RepeatAugSampler.
    """
    num_selected = length // selected_round * selected_round // world_size
    positions = torch.arange(num_selected) * world_size + rank
    return _permutation(length, epoch, seed)[positions // repeats]


def shuffled_indices(length: int, epoch: int, rank: int = 0, world_size: int = 1, *, seed: int = 0) -> torch.Tensor:
    """Indices of one rank's epoch, every sample at most once over all ranks.

    Returns:
        (length // world_size,) int64; the remainder of the permutation is left out of this epoch.
    """
    return _permutation(length, epoch, seed)[rank : length // world_size * world_size : world_size]


def local_indices(files: np.ndarray, parts: int, epoch: int, *, seed: int = 0, at_once: int = 8) -> torch.Tensor:
    """An epoch in which each of several readers has files of its own and reads a few of them at a time.

    The files stand in a random order, one behind the other, and are cut into `parts` of equally many samples; within a
    part, those of `at_once` files in a row are shuffled. Readers take turns: sample i is that of reader i % parts.

    Args:
        files: (n,) the file that each sample lies in.
        parts: readers; for `Split.share`, the micro-batches of a step. Their number alone counts, not who reads them.
        epoch, seed: of the order.
        at_once: files that a reader mixes.

    Returns:
        (n // parts * parts,) int64, every sample at most once.
    """
    rank = _permutation(int(files.max()) + 1, epoch, seed)[torch.from_numpy(files)]  # place of a sample's file
    order = torch.sort(rank, stable=True).indices
    size = len(order) // parts
    cut = order[: size * parts].view(parts, size)
    place = rank[cut]
    window = (place - place[:, :1]) // at_once
    mixed = _permutation(cut.numel(), epoch, seed).view(parts, size)  # any numbers without a tie
    within = torch.argsort(window * cut.numel() + mixed, dim=1)
    return cut.gather(1, within).T.flatten()


@dataclass(frozen=True)
class Split:
    """One rank's part of every optimizer step: the steps are the same however they are split.

    A step consists of world_size * accumulation micro-batches; number a * world_size + rank is a rank's a-th.
    """

    rank: int = 0
    world_size: int = 1
    accumulation: int = 1

    def share(self, order: torch.Tensor, batch_size: int) -> torch.Tensor:
        """The rank's part of an epoch.

        The samples of a step are dealt to its micro-batches one by one, so that the repeats of a sample go to different
        ones. Samples that do not fill a last step are left out; where there are too few for one, it has as many
        micro-batches as every rank can fill.

        Args:
            order: (n,) samples of the epoch over all ranks.
            batch_size: samples of a micro-batch.

        Returns:
            (m * batch_size,) for the rank's m micro-batches.
        """
        batches = len(order) // (batch_size * self.world_size)
        accumulation = max(1, min(self.accumulation, batches))
        steps = batches // accumulation
        shape = steps, batch_size, accumulation, self.world_size
        return order[: math.prod(shape)].view(shape)[..., self.rank].transpose(1, 2).flatten()

    def place(self, number: int) -> tuple[int, int]:
        """Of the rank's micro-batch `number` in an epoch: its number in the step, and the step."""
        step, index = divmod(number, self.accumulation)
        return index * self.world_size + self.rank, step


def shard_indices(length: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """Indices of one rank's share of an evaluation: rank, rank + world_size, ...; nothing is padded.

    Returns:
        (n,) int64; the ranks' shares differ by at most one sample and hold every sample exactly once.
    """
    return torch.arange(length)[rank::world_size]


def subset_indices(length: int, ratio: float, *, seed: int = 0) -> torch.Tensor:
    """A seeded random subset of a data set, the same on every rank and in every epoch.

    Returns:
        (round(length * ratio),) int64, ascending.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(length, generator=generator)[: round(length * ratio)].sort().values


def draw_seeds(key: tuple[int, ...], count: int) -> list[list[int]]:
    """Seeds of `count` independent samples, a pure function of the key (such as seed, epoch, rank, batch).

    Returns:
        `count` triples for `seed_globals`.
    """
    words = np.random.SeedSequence(key).generate_state(3 * count)
    return words.reshape(count, 3).tolist()


def seed_globals(seeds: list[int]) -> None:
    """Seed the global generators of Python, NumPy and torch (CPU) with one word each, in 6 microseconds."""
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])


@contextmanager
def preserved_globals() -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch (CPU) as they were found."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _permutation(length: int, epoch: int, seed: int) -> torch.Tensor:
    if seed:
        epoch = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    return torch.randperm(length, generator=torch.Generator().manual_seed(epoch))
