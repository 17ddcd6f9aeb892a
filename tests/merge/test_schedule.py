"""Which blocks merge, and how many tokens each leaves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmeeto.merge import MergeConfig, Tokens, match, merging_blocks, removals, token_counts
from rmeeto.merge.schedule import removals_asked

CHECKED = settings(deadline=None, derandomize=True, max_examples=120)


@pytest.mark.parametrize(
    ("depth", "interval", "odd", "blocks"),
    [
        (24, 2, False, list(range(2, 24, 2))),
        (24, 2, True, list(range(1, 24, 2))),
        (24, 4, False, [4, 8, 12, 16, 20]),
        (24, 4, True, [3, 7, 11, 15, 19, 23]),
        (24, 8, False, [8, 16]),
        (6, 1, False, [1, 2, 3, 4, 5]),
        (6, 1, True, [1, 2, 3, 4, 5]),
        (6, 6, False, []),
        (1, 1, False, []),
    ],
)
def test_merging_blocks(depth, interval, odd, blocks):
    assert merging_blocks(depth, interval, odd) == blocks


@pytest.mark.parametrize("r, last, reduced", [(5, 142, 0.14), (11, 76, 0.31)])
def test_the_papers_schedules(r, last, reduced):
    counts = token_counts(MergeConfig(r=r), 24, 197)
    assert counts[:5] == [197, 197, 197 - r, 197 - r, 197 - 2 * r] and counts[-1] == last
    assert round(1 - sum(counts) / (24 * 197), 2) == reduced


def test_dense_models_keep_their_tokens():
    assert token_counts(None, 4, 50) == token_counts(MergeConfig(), 4, 50) == [50] * 4
    assert removals(None, 4, 50) == [0] * 4


def test_a_list_gives_each_merge_its_own_r():
    assert removals(MergeConfig(r=(3, 0, 7)), 7, 50) == [0, 0, 3, 0, 0, 0, 7]


@pytest.mark.parametrize("r", [(3,), (3, 2, 1, 0)])
def test_a_list_of_another_length_is_refused(r):
    with pytest.raises(ValueError, match=rf"lists {len(r)} values, but 3 blocks merge.*interval=2, odd=False"):
        removals(MergeConfig(r=r), 7, 50)


@CHECKED
@given(st.integers(0, 40), st.floats(-1, 1), st.integers(2, 40))
def test_an_inflection_keeps_the_sum_and_changes_linearly(r, inflection, merges):
    asked = removals_asked(MergeConfig(r=(r, inflection)), merges)
    assert sum(asked) == r * merges and min(asked) >= 0
    for i, value in enumerate(asked):
        assert abs(value - r * (1 + inflection * (2 * i / (merges - 1) - 1))) <= 1


def test_inflections_by_hand():
    assert removals_asked(MergeConfig(r=(8, 0.0)), 5) == [8] * 5
    assert removals_asked(MergeConfig(r=(8, 1.0)), 5) == [0, 4, 8, 12, 16]
    assert removals_asked(MergeConfig(r=(8, -1.0)), 5) == [16, 12, 8, 4, 0]
    assert removals_asked(MergeConfig(r=(8, -1.0)), 1) == [8]
    assert removals_asked(MergeConfig(r=(8, -1.0)), 0) == []


@pytest.mark.parametrize(
    ("r", "tokens", "protected", "removed"),
    [
        (5, 197, True, 5),
        (0, 197, True, 0),
        (-3, 197, True, 0),
        (200, 197, True, 98),
        (200, 196, True, 97),
        (200, 196, False, 98),
        (9, 3, True, 1),
        (9, 2, True, 0),
        (9, 2, False, 0),
        (9, 1, False, 0),
    ],
)
def test_r_is_clamped_to_half_of_the_tokens(r, tokens, protected, removed):
    assert Tokens(tokens, 0 if protected else None).limit(r) == removed


@pytest.mark.parametrize(
    ("final", "expected"),
    [
        (30, [0, 0, 4, 0, 4, 0, 12]),
        (50, [0, 0, 4, 0, 4, 0, 0]),  # fewer left already
        (42, [0, 0, 4, 0, 4, 0, 0]),
        (1, [0, 0, 4, 0, 4, 0, 20]),  # half of 42 - 1 at most
    ],
)
def test_final_tokens_sets_the_last_merge_alone(final, expected):
    assert removals(MergeConfig(r=4, final_tokens=final), 7, 50) == expected


def test_final_tokens_acts_without_r():
    assert token_counts(MergeConfig(final_tokens=76), 24, 197)[-3:] == [197, 99, 99]  # half at most
    assert token_counts(MergeConfig(r=5, final_tokens=76), 24, 197)[-3:] == [147, 76, 76]


@CHECKED
@given(
    st.integers(1, 20),
    st.integers(1, 60),
    st.integers(0, 30) | st.floats(0, 0.5),
    st.integers(1, 5),
    st.booleans(),
    st.none() | st.integers(1, 60),
)
def test_counts_follow_from_removals_and_match_agrees(depth, tokens, r, interval, odd, final):
    config = MergeConfig(r=r, interval=interval, odd=odd, final_tokens=final)
    removed = removals(config, depth, tokens)
    counts = token_counts(config, depth, tokens)
    assert len(removed) == len(counts) == depth
    blocks = merging_blocks(depth, interval, odd)
    left = tokens
    for block, (r_block, count) in enumerate(zip(removed, counts)):
        assert r_block == 0 or block in blocks
        plan = match(torch.randn(1, left, 2), r_block, class_index=0)
        assert plan.num_tokens == count == left - r_block
        left = count
