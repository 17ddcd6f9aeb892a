"""Who sees which sample: against the recorded sampler, and the properties that sharding must have."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmeeto.data import sampler

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ra_sampler.npz")
CASES = sorted({name.split("/")[0] for name in GOLDEN.files})


@pytest.mark.parametrize("case", CASES)
def test_repeated_augmentation_equals_the_recorded_sampler(case):
    config = json.loads(str(GOLDEN[f"{case}/config"]))
    assert config["shuffle"]
    indices = sampler.repeated_augmentation_indices(
        config["dataset_len"],
        config["epoch"],
        config["rank"],
        config["num_replicas"],
        repeats=config["repeats"],
    )
    assert len(indices) == GOLDEN[f"{case}/length"]
    assert indices.tolist() == GOLDEN[f"{case}/indices"].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_repeated_augmentation_equals_timm_above_256_samples(world_size):
    from timm.data.distributed_sampler import RepeatAugSampler

    for rank in range(world_size):
        theirs = RepeatAugSampler(range(700), num_replicas=world_size, rank=rank)
        theirs.set_epoch(5)
        ours = sampler.repeated_augmentation_indices(700, 5, rank, world_size)
        assert ours.tolist() == list(theirs)


@pytest.mark.parametrize("order", [sampler.repeated_augmentation_indices, sampler.shuffled_indices])
def test_seed_and_epoch_change_the_order_and_nothing_else_does(order):
    base = order(600, 1, seed=0)
    assert torch.equal(base, order(600, 1, seed=0))
    for other in (order(600, 2, seed=0), order(600, 1, seed=1), order(600, 0, seed=2)):
        assert len(other) == len(base) and not torch.equal(other, base)


@given(st.integers(1, 600), st.integers(1, 9), st.integers(0, 3))
def test_shuffled_shares_are_equal_and_disjoint(length, world_size, seed):
    shares = [sampler.shuffled_indices(length, 2, rank, world_size, seed=seed) for rank in range(world_size)]
    assert {len(share) for share in shares} == {length // world_size}
    together = torch.cat(shares).tolist()
    assert len(set(together)) == len(together) and set(together) <= set(range(length))


@given(st.integers(0, 600), st.integers(1, 9))
def test_evaluation_shares_hold_every_sample_exactly_once(length, world_size):
    shares = [sampler.shard_indices(length, rank, world_size).tolist() for rank in range(world_size)]
    assert sorted(sum(shares, [])) == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_small_data_sets_keep_every_sample_only_on_request():
    assert len(sampler.repeated_augmentation_indices(200, 0)) == 0
    kept = sampler.repeated_augmentation_indices(200, 0, selected_round=200)
    assert len(kept) == 200 and len(kept.unique()) == 67


def test_subset_is_seeded_ascending_and_of_the_asked_size():
    subset = sampler.subset_indices(1000, 0.29, seed=3)
    assert len(subset) == 290 and torch.equal(subset, subset.unique())
    assert torch.equal(subset, sampler.subset_indices(1000, 0.29, seed=3))
    assert not torch.equal(subset, sampler.subset_indices(1000, 0.29, seed=4))


def test_seeds_depend_on_every_part_of_the_key_and_on_the_position():
    seeds = sampler.draw_seeds((0, 1, 2, 3), 5)
    assert seeds == sampler.draw_seeds((0, 1, 2, 3), 5)
    assert len({tuple(words) for words in seeds}) == 5
    for part in range(4):
        key = [0, 1, 2, 3]
        key[part] += 7
        assert not set(map(tuple, sampler.draw_seeds(tuple(key), 5))) & set(map(tuple, seeds))


def _draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeding_sets_all_three_generators_and_preserving_restores_them():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [_draw(), _draw()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert _draw() == expected[0]
    with pytest.raises(KeyError), sampler.preserved_globals():
        sampler.seed_globals([5, 6, 7])
        seeded = _draw()
        sampler.seed_globals([5, 6, 7])
        assert _draw() == seeded and all(a != b for a, b in zip(seeded, expected[1]))
        raise KeyError
    assert _draw() == expected[1]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_a_steps_micro_batches_are_the_same_however_they_are_split(world_size):
    """8 micro-batches of 3 a step: 8 x 1 is what timm's samplers deal to 8 ranks, and 1 x 8 the same."""
    order = sampler.repeated_augmentation_indices(1000, 5, selected_round=1)
    expected = {
        (rank, step): order[rank::8][3 * step : 3 * step + 3].tolist()
        for rank in range(8)
        for step in range(1000 // 24)
    }
    found = {}
    for rank in range(world_size):
        split = sampler.Split(rank, world_size, 8 // world_size)
        for number, batch in enumerate(split.share(order, 3).view(-1, 3).tolist()):
            found[split.place(number)] = batch
    assert found == expected


@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 9), st.integers(0, 2), st.integers(1, 4))
def test_readers_have_files_of_their_own_and_every_sample_is_some_readers(length, num_files, parts, seed, at_once):
    files = np.sort(np.random.default_rng(length).integers(0, num_files, length))
    order = sampler.local_indices(files, parts, 3, seed=seed, at_once=at_once)
    assert len(order) == length // parts * parts and len(set(order.tolist())) == len(order)
    read = [files[order[part::parts].numpy()] for part in range(parts)]
    for other in range(1, parts):  # a file that is cut lies on the edge of two readers
        shared = set(read[other]) & set(read[other - 1])
        assert len(shared) <= 1 or length < parts
    for seen in read:  # at no time are more than `at_once` files begun and not yet done
        spans = [np.flatnonzero(seen == file)[[0, -1]] for file in set(seen)]
        for place in range(len(seen)):
            assert sum(first <= place <= last for first, last in spans) <= at_once


def test_readers_orders_are_shuffled_and_others_in_every_epoch():
    files = np.repeat(np.arange(40), 25)
    first, second = (sampler.local_indices(files, 4, epoch, at_once=5) for epoch in (0, 1))
    assert not torch.equal(first, second) and sorted(first.tolist()) == sorted(second.tolist())
    part = first[::4]
    assert len(set(files[part[:125].numpy()])) == 5  # a window of five files, mixed
    assert len(set(files[part[:25].numpy()])) > 2
    assert not torch.equal(part[:125], part[:125].sort().values)
    assert torch.equal(first, sampler.local_indices(files, 4, 0, at_once=5))


def test_data_that_do_not_fill_a_step_give_what_every_rank_can_fill():
    order = torch.arange(11)
    shares = [sampler.Split(rank, 2, 8).share(order, 2) for rank in range(2)]
    assert [share.tolist() for share in shares] == [[0, 4, 2, 6], [1, 5, 3, 7]]
    assert len(sampler.Split(0, 6, 1).share(order, 2)) == 0
