"""`match` against a slow definition in plain Python, and the choices it has to make."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rmeeto.merge import match, merge_source, merge_wavg

CHECKED = settings(deadline=None, derandomize=True, max_examples=150)


def score(a: list[float], b: list[float], distance: str) -> float:
    if distance == "cosine":
        return sum(x * y for x, y in zip(a, b))
    if distance == "l1":
        return -sum(abs(x - y) for x, y in zip(a, b))
    return -math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)))


def slow_match(metric, r, class_index, distance, neighbour, keep_order, class_position):
    """One sample's plan: tokens after the merge, {source: destination} (old positions), reported class position."""
    num_tokens = len(metric)
    lengths = [math.sqrt(sum(x * x for x in token)) for token in metric]
    unit = [[x / max(n, 1e-12) for x in token] for token, n in zip(metric, lengths)]
    p = 0 if class_index is None else class_index
    limit = num_tokens // 2 if class_index is None else (num_tokens - 1) // 2
    r = max(0, min(r, limit if num_tokens > 2 else 0))
    if r == 0:
        return list(range(num_tokens)), {}, class_index

    patches = [token for token in range(num_tokens) if token != p]
    sources, destinations = patches[0::2], patches[1::2]
    pairs = []
    for place, a in enumerate(sources):
        scores = [score(unit[a], unit[b], distance) for b in destinations]
        best = sorted(range(len(destinations)), key=lambda j: (-scores[j], j))[neighbour - 1]
        pairs.append((-scores[best], place, destinations[best]))
    pairs.sort(key=lambda pair: pair[:2])
    moved = {sources[place]: destination for _, place, destination in pairs[:r]}

    if keep_order:
        kept = [token for token in patches if token not in moved]
        behind = sum(token < p for token in kept)
        place = behind if class_position == "exact" else p * (num_tokens - r) // num_tokens
        reported = place
    else:
        kept = [sources[place] for _, place, _ in pairs[r:]] + destinations
        reported = p * (len(sources) - r) // len(sources)
        place = min(reported, len(sources) - r)
        reported = place if class_position == "exact" else reported
    return [*kept[:place], p, *kept[place:]], moved, None if class_index is None else reported


def assert_same(plan, metric, options):
    class_index = options["class_index"]
    for b, sample in enumerate(metric.tolist()):
        index = class_index[b].item() if isinstance(class_index, torch.Tensor) else class_index
        tokens, moved, reported = slow_match(sample, **{**options, "class_index": index})
        assert plan.keep[b].tolist() == tokens
        went = plan.keep[b][plan.destination[b]].tolist()
        assert dict(zip(plan.source[b].tolist(), went)) == moved
        got = plan.class_index
        assert (got[b].item() if isinstance(got, torch.Tensor) else got) == reported


@st.composite
def metrics(draw, tied: bool):
    """(B, L, C) float64: normal numbers, or unit vectors and zeros, whose scores are exact and often equal."""
    batch, tokens, width = draw(st.integers(1, 2)), draw(st.integers(1, 13)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    if not tied:
        return torch.randn(batch, tokens, width, dtype=torch.float64, generator=generator)
    directions = torch.cat([torch.eye(width), -torch.eye(width)[:1], torch.zeros(1, width)]).double()
    return directions[torch.randint(len(directions), (batch, tokens), generator=generator)]


@st.composite
def options(draw, batch: int, tokens: int):
    """Every option of `match` but prune, which does not change the matching."""
    index = draw(st.none() | st.integers(0, tokens - 1))
    if index is not None and draw(st.booleans()):
        index = torch.tensor(draw(st.lists(st.integers(0, tokens - 1), min_size=batch, max_size=batch)))
    return {
        "r": draw(st.integers(-1, tokens + 1)),
        "class_index": index,
        "distance": draw(st.sampled_from(["cosine", "l1", "l2"])),
        "neighbour": draw(st.integers(1, max(1, (tokens - 1) // 2))),
        "keep_order": draw(st.booleans()),
        "class_position": draw(st.sampled_from(["proportional", "exact"])),
    }


@CHECKED
@given(st.data())
def test_match_equals_the_slow_definition(data):
    metric = data.draw(metrics(tied=False))
    chosen = data.draw(options(*metric.shape[:2]))
    assert_same(match(metric, **chosen), metric, chosen)


@CHECKED
@given(st.data())
def test_ties_go_to_the_lower_position(data):
    metric = data.draw(metrics(tied=True))
    chosen = data.draw(options(*metric.shape[:2]))
    assert_same(match(metric, **chosen), metric, chosen)
    assert_same(match(metric.float(), **chosen), metric, chosen)


@pytest.mark.parametrize("distance", ["cosine", "l1", "l2"])
def test_identical_tokens_merge_from_the_front_into_the_front(distance):
    plan = match(torch.ones(1, 9, 4), 2, class_index=4, distance=distance)
    assert plan.source.tolist() == [[0, 2]]  # sources 0 2 5 7, destinations 1 3 6 8
    assert plan.keep[0][plan.destination[0]].tolist() == [1, 1]


@pytest.mark.parametrize("distance", ["cosine", "l1", "l2"])
def test_zero_tokens_give_finite_tokens(distance):
    metric = torch.zeros(2, 11, 3)
    metric[:, 4:] = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    plan = match(metric, 4, class_index=5, distance=distance)
    y, size = merge_wavg(plan, metric)
    assert y.isfinite().all() and (size > 0).all()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("distance", ["cosine", "l1", "l2"])
def test_the_metric_is_normalised_before_every_distance(distance, scale):
    metric = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scales = torch.linspace(scale, 1, 20, dtype=torch.float64).unsqueeze(-1)
    plain, scaled = (match(m, 6, class_index=0, distance=distance) for m in (metric, metric * scales))
    assert torch.equal(plain.keep, scaled.keep) and torch.equal(plain.destination, scaled.destination)


@pytest.mark.parametrize("distance", ["cosine", "l1", "l2"])
def test_half_precision_metrics_are_compared_in_float32(distance):
    metric = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = match(metric, 20, class_index=30, distance=distance)
    full = match(metric.float(), 20, class_index=30, distance=distance)
    assert torch.equal(half.keep, full.keep) and torch.equal(half.destination, full.destination)


def test_a_view_gives_the_plan_of_its_copy():
    wide = torch.randn(3, 8, 21, generator=torch.Generator().manual_seed(3))
    view = wide.transpose(1, 2)
    assert torch.equal(match(view, 7, class_index=10).keep, match(view.contiguous(), 7, class_index=10).keep)


def test_no_gradient_flows_through_the_matching():
    metric = torch.randn(1, 9, 4, requires_grad=True)
    plan = match(metric, 3, class_index=0)
    y, _ = merge_wavg(plan, torch.randn(1, 9, 4))
    assert not y.requires_grad


@given(st.integers(3, 30), st.integers(1, 12), st.data())
@CHECKED
def test_exact_position_is_behind_the_tokens_that_survived_before_it(tokens, r, data):
    p = data.draw(st.integers(0, tokens - 1))
    metric = torch.randn(4, tokens, 6, generator=torch.Generator().manual_seed(tokens))
    plan = match(metric, r, class_index=p, class_position="exact")
    assert plan.class_index.tolist() == [sum(token < p for token in kept) for kept in plan.keep.tolist()]
    assert plan.class_index.dtype == torch.long


@example(tokens=197, r=11, p=98)  # Vim at 224 pixels
@given(tokens=st.integers(3, 200), r=st.integers(1, 40), p=st.integers(0, 199))
@CHECKED
def test_proportional_position(tokens, r, p):
    p %= tokens
    metric = torch.randn(1, tokens, 3, generator=torch.Generator().manual_seed(0))
    plan = match(metric, r, class_index=p)
    removed = min(r, (tokens - 1) // 2)
    assert plan.class_index == p * (tokens - removed) // tokens
    assert plan.keep[0, plan.class_index] == p


def test_without_a_class_token_half_of_all_tokens_may_merge():
    metric = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0))
    assert match(metric, 100).num_tokens == 4
    assert match(metric, 100, class_index=0).num_tokens == 5
    assert match(metric, 100).class_index is None


def test_neighbour_takes_the_kth_best_destination_and_its_score():
    # Sources 0 and 2; destinations 1, 3, 5 at growing angles; the class token is last.
    angles = torch.tensor([0.0, 0.1, 0.05, 0.3, 3.0, 0.6, 0.0])
    metric = torch.stack([angles.cos(), angles.sin()], -1).unsqueeze(0)
    for k, destination in ((1, 1), (2, 3), (3, 5)):
        plan = match(metric, 1, class_index=6, neighbour=k)
        assert plan.keep[0][plan.destination[0]].tolist() == [destination]
    # Scores are those of the k-th pair: source 2 (0.05) is nearer to 3 and 5 than source 0 is.
    assert match(metric, 1, class_index=6, neighbour=2).source.tolist() == [[2]]


def test_pruning_matches_as_merging_does():
    metric = torch.randn(2, 15, 4, generator=torch.Generator().manual_seed(5))
    merged, pruned = (match(metric, 5, class_index=7, prune=prune) for prune in (False, True))
    assert torch.equal(merged.keep, pruned.keep) and torch.equal(merged.source, pruned.source)
    assert (merge_source(pruned).sum(1) <= 1).all() and merge_source(pruned).sum() == 2 * 10


@pytest.mark.parametrize(
    ("arguments", "got", "expected"),
    [
        ({"metric": torch.ones(4, 3)}, "(4, 3)", "(batch, tokens, channels)"),
        ({"distance": "l3"}, "'l3'", "cosine"),
        ({"class_position": "middle"}, "'middle'", "exact"),
        ({"neighbour": 0}, "neighbour=0", "1 (the most similar)"),
        ({"neighbour": 5}, "neighbour=5", "4 destinations"),
        ({"class_index": 9}, "class_index=9", "0 to 8"),
        ({"class_index": -1}, "class_index=-1", "0 to 8"),
        ({"class_index": torch.tensor([1, 2])}, "(2,)", "(1,)"),
        ({"class_index": torch.tensor([9])}, "9 in sample 0", "0 to 8"),
        ({"class_index": torch.tensor([-1])}, "-1 in sample 0", "0 to 8"),
        ({"class_index": 4.0}, "class_index=4.0", "a whole number"),
        ({"r": 2.5}, "r=2.5", "a whole number"),
    ],
)
def test_match_refuses_with_what_was_got_and_expected(arguments, got, expected):
    with pytest.raises(ValueError) as error:
        match(**{"metric": torch.ones(1, 9, 3), "r": 2, "class_index": 4, **arguments})
    message = str(error.value)
    assert got in message and expected in message and len(message.splitlines()) <= 2


def test_whole_numbers_of_numpy_are_numbers():
    metric = torch.randn(2, 9, 3)
    found, expected = match(metric, np.int64(2), np.int64(4)), match(metric, 2, 4)
    assert torch.equal(found.keep, expected.keep) and found.class_index == expected.class_index


@pytest.mark.parametrize("shape", [(1, 8, 3), (2, 9, 3), (1, 9)])
def test_plan_refuses_tensors_of_other_tokens(shape):
    plan = match(torch.randn(1, 9, 3), 2, class_index=4)
    with pytest.raises(ValueError, match=r"expected \(1, 9, C\)"):
        plan.merge(torch.ones(shape))
    with pytest.raises(ValueError, match=r"expected \(1, 7, 'C'\)"):
        plan.unmerge(torch.ones(shape))
    with pytest.raises(ValueError, match="mode='median'.*'sum'"):
        plan.merge(torch.ones(1, 9, 3), mode="median")


@pytest.mark.parametrize("arguments", [{"class_index": 30}, {"prefix": 5}, {"class_index": 3, "neighbour": 2}])
def test_long_inputs_are_matched_in_blocks_with_the_same_plan(arguments, monkeypatch):
    metric = torch.randn(2, 62, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, sizes = match(metric, 20, **arguments), []
    module = sys.modules["rmeeto.merge.rules.exact"]
    seen = module.similarity
    monkeypatch.setattr(module, "SCORES", 60)
    monkeypatch.setattr(module, "similarity", lambda *x: sizes.append(seen(*x).shape[1:].numel()) or seen(*x))
    blocks = match(metric, 20, **arguments)
    assert len(sizes) > 10 and max(sizes) <= 62
    assert torch.equal(blocks.keep, whole.keep) and torch.equal(blocks.source, whole.source)
    assert torch.equal(blocks.destination, whole.destination)
