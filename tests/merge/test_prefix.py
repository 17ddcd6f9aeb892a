"""The layout of Transformers: the first tokens are sources and destinations that never merge."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmeeto.merge import MergeConfig, match, merge_wavg, removals, token_counts
from tests.golden_data import randn

CASES = settings(deadline=None, derandomize=True, max_examples=150)


@CASES
@given(
    st.integers(1, 40),
    st.integers(0, 6),
    st.integers(0, 50),
    st.booleans(),
    st.sampled_from(["cosine", "l1", "l2"]),
)
def test_the_prefix_stays_first_and_alone(num_tokens, prefix, r, keep_order, distance):
    prefix = min(prefix, num_tokens)
    plan = match(randn(3, (2, num_tokens, 4)), r, distance=distance, keep_order=keep_order, prefix=prefix)
    removed = min(r, (num_tokens - prefix) // 2)
    assert plan.num_tokens == num_tokens - removed and plan.source.shape == (2, removed)
    assert plan.class_index == (0 if prefix else None)
    index = torch.arange(num_tokens).reshape(1, -1, 1).expand(2, -1, 1)
    _, size = merge_wavg(plan, index.float())
    assert torch.equal(plan.keep[:, :prefix], index[:, :prefix, 0])
    assert (size[:, :prefix] == 1).all() and (size.sum(1) == num_tokens).all()
    assert (plan.source % 2 == 0).all()
    if keep_order:
        assert (plan.keep.diff(dim=1) > 0).all()
    together = torch.cat([plan.keep, plan.source], dim=1).sort(dim=1).values
    assert torch.equal(together, index[..., 0])
    kept = plan.keep.gather(1, plan.destination)
    assert (kept % 2 == 1).all() and (kept >= prefix).all()


def test_each_source_goes_to_its_most_similar_destination():
    #          class   a             b (like c)    c             d (like a)    e
    metric = [[1.0, 1], [1.0, 0.0], [0.1, 1.0], [0.0, 1.0], [1.0, 0.2], [-1.0, 0.0]]
    plan = match(torch.tensor([metric]), 2, prefix=1)
    assert plan.keep.tolist() == [[0, 1, 3, 5]]
    assert dict(zip(plan.source[0].tolist(), plan.destination[0].tolist())) == {2: 2, 4: 1}
    unordered = match(torch.tensor([metric]), 1, keep_order=False, prefix=1)
    assert unordered.keep.tolist() == [[0, 4, 1, 3, 5]] and unordered.destination.tolist() == [[3]]


def test_unordered_keeps_a_second_protected_token_in_front():
    metric = randn(5, (1, 9, 4))
    plan = match(metric, 2, keep_order=False, prefix=2)
    assert plan.keep[0, :2].tolist() == [0, 1]
    sources, destinations = plan.keep[0, 2:4], plan.keep[0, 4:]
    assert (sources % 2 == 0).all() and sources[0] < sources[1] and destinations.tolist() == [3, 5, 7]


def test_neighbour_counts_only_destinations_that_can_take_a_source():
    metric = randn(5, (1, 9, 4))
    assert match(metric, 1, neighbour=2, prefix=5).num_tokens == 8
    with pytest.raises(ValueError, match="neighbour=3, but there are only 2 destinations"):
        match(metric, 1, neighbour=3, prefix=5)


@pytest.mark.parametrize("arguments", [{"prefix": 10}, {"prefix": -1}, {"prefix": 1, "class_index": 0}])
def test_a_prefix_that_does_not_fit_is_refused(arguments):
    with pytest.raises(ValueError, match=rf"prefix={arguments['prefix']} .*expected 0 to 9 tokens, and no class_index"):
        match(randn(5, (1, 9, 4)), 1, **arguments)


def test_every_block_of_a_transformer_merges_after_its_attention():
    config = MergeConfig(r=30)
    assert removals(config, 6, 50, prefix=1) == [24, 12, 6, 3, 2, 1]
    assert token_counts(config, 6, 50, prefix=1) == [50, 26, 14, 8, 5, 3]
    assert removals(MergeConfig(r=3, final_tokens=30), 3, 50, prefix=1) == [3, 3, 14]
    assert removals(MergeConfig(r=(8, -1.0)), 3, 50, prefix=2) == [16, 8, 0]
