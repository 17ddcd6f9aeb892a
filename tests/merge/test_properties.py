"""What holds for every merge, whatever the tokens and the options."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmeeto.merge import MergePlan, match, merge_source, merge_wavg

CHECKED = settings(deadline=None, derandomize=True, max_examples=100)


@st.composite
def merges(draw, **fixed):
    """(plan, x, options) of a random merge of (B, L, 3) float64 tokens."""
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 16))
    index = draw(st.none() | st.integers(0, tokens - 1))
    if index is not None and draw(st.booleans()):
        index = torch.tensor(draw(st.lists(st.integers(0, tokens - 1), min_size=batch, max_size=batch)))
    options = {
        "r": draw(st.integers(-1, 12)),
        "class_index": index,
        "distance": draw(st.sampled_from(["cosine", "l1", "l2"])),
        "neighbour": draw(st.integers(1, max(1, (tokens - 1) // 2))),
        "keep_order": draw(st.booleans()),
        "prune": draw(st.booleans()),
        "class_position": draw(st.sampled_from(["proportional", "exact"])),
    } | fixed
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    metric = torch.randn(batch, tokens, 4, generator=generator)
    x = torch.randn(batch, tokens, 3, generator=generator, dtype=torch.float64)
    return match(metric, **options), x, options


def lands_where_reported(plan: MergePlan, options: dict) -> bool:
    """Unordered and proportional, the published formula is not always the class token's place."""
    return options["keep_order"] or options["class_position"] == "exact" or plan.source.shape[1] == 0


@CHECKED
@given(merges())
def test_tokens_removed_are_r_clamped_to_half(merge):
    plan, x, options = merge
    tokens = x.shape[1]
    limit = tokens // 2 if options["class_index"] is None else (tokens - 1) // 2
    removed = max(0, min(options["r"], limit)) if tokens > 2 else 0
    assert plan.num_tokens == tokens - removed == plan.keep.shape[1]
    assert plan.source.shape[1] == plan.destination.shape[1] == removed


@CHECKED
@given(merges(prune=False))
def test_sizes_sum_to_the_number_of_tokens(merge):
    plan, x, _ = merge
    _, size = merge_wavg(plan, x)
    assert (size.sum(1) == x.shape[1]).all()
    assert (size >= 1).all() and (size == size.round()).all()


@CHECKED
@given(merges(prune=False), st.sampled_from(["mean", "amax", "amin"]))
def test_other_modes_reduce_numerator_and_size_alike(merge, mode):
    plan, x, _ = merge
    size = torch.rand(*x.shape[:2], 1, dtype=x.dtype, generator=torch.Generator().manual_seed(0)) + 1
    y, new_size = merge_wavg(plan, x, size, mode)
    reduce = {"mean": torch.mean, "amax": torch.amax, "amin": torch.amin}[mode]
    for b, members in enumerate(merge_source(plan).bool()):
        for token, member in enumerate(members):
            expected = reduce(size[b, member], dim=0)
            torch.testing.assert_close(new_size[b, token], expected)
            torch.testing.assert_close(y[b, token], reduce(x[b, member] * size[b, member], dim=0) / expected)


@CHECKED
@given(merges(prune=False))
def test_every_original_token_is_in_exactly_one_merged_token(merge):
    plan, _, _ = merge
    assert (merge_source(plan).sum(1) == 1).all()


@CHECKED
@given(merges(prune=True))
def test_a_pruned_token_is_in_none_and_the_others_are_untouched(merge):
    plan, x, _ = merge
    columns = merge_source(plan).sum(1)
    assert (columns.gather(1, plan.source) == 0).all() and (columns.gather(1, plan.keep) == 1).all()
    size = torch.rand(*x.shape[:2], 1, dtype=x.dtype, generator=torch.Generator().manual_seed(0)) + 1
    y, new_size = merge_wavg(plan, x, size)
    assert torch.equal(y, x.gather(1, plan.keep.unsqueeze(-1).expand(-1, -1, 3)))
    assert torch.equal(new_size, size.gather(1, plan.keep.unsqueeze(-1)))


@CHECKED
@given(merges(keep_order=True))
def test_survivors_keep_their_order(merge):
    plan, _, options = merge
    for b, kept in enumerate(plan.keep.tolist()):
        index = options["class_index"]
        index = index[b].item() if isinstance(index, torch.Tensor) else index or 0
        patches = [token for token in kept if token != index]
        assert patches == sorted(patches) and index in kept
        if options["class_position"] == "exact":
            assert kept == sorted(kept)


@CHECKED
@given(merges(), st.sampled_from(["sum", "mean", "amax", "amin"]))
def test_the_class_token_is_safe(merge, mode):
    plan, x, options = merge
    if options["class_index"] is None:
        assert plan.class_index is None
        return
    before = torch.as_tensor(options["class_index"]).expand(len(x))
    after = torch.as_tensor(plan.class_index).expand(len(x))
    samples = torch.arange(len(x))
    assert not (plan.source == before.unsqueeze(1)).any()
    y, size = merge_wavg(plan, x, mode=mode)
    where = after if lands_where_reported(plan, options) else (plan.keep == before.unsqueeze(1)).int().argmax(1)
    assert torch.equal(y[samples, where], x[samples, before])
    assert (size[samples, where] == 1).all()
    assert torch.equal(plan.keep[samples, where], before)


@CHECKED
@given(merges())
def test_unmerge_gives_every_token_its_merged_value(merge):
    plan, x, _ = merge
    y, _ = merge_wavg(plan, x)
    full = plan.unmerge(y)
    assert full.shape == x.shape
    assert torch.equal(full.gather(1, plan.keep.unsqueeze(-1).expand(-1, -1, 3)), y)
    moved = full.gather(1, plan.source.unsqueeze(-1).expand(-1, -1, 3))
    assert torch.equal(moved, y.gather(1, plan.destination.unsqueeze(-1).expand(-1, -1, 3)))


@CHECKED
@given(merges(prune=False))
def test_merging_what_was_unmerged_changes_nothing(merge):
    plan, x, _ = merge
    y, _ = merge_wavg(plan, x)
    torch.testing.assert_close(merge_wavg(plan, plan.unmerge(y))[0], y)


@pytest.mark.parametrize("r", [0, -1, -100])
@pytest.mark.parametrize("class_index", [None, 0, 4, torch.tensor([1, 8])])
@pytest.mark.parametrize("class_position", ["proportional", "exact"])
def test_no_r_is_the_identity(r, class_index, class_position):
    x = torch.randn(2, 9, 3)
    plan = match(x, r, class_index, keep_order=False, class_position=class_position)
    y, size = merge_wavg(plan, x)
    assert torch.equal(y, x) and torch.equal(plan.unmerge(x), x) and torch.equal(plan.merge(x), x)
    assert torch.equal(size, torch.ones(2, 9, 1))
    assert torch.equal(merge_source(plan), torch.eye(9).expand(2, -1, -1))
    if class_index is None:
        assert plan.class_index is None
    else:
        assert (torch.as_tensor(plan.class_index) == torch.as_tensor(class_index)).all()


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("class_index", [None, 0])
def test_too_few_tokens_to_pair_stay(tokens, class_index):
    assert match(torch.randn(2, tokens, 3), 5, class_index).num_tokens == tokens


@CHECKED
@given(
    st.integers(2, 40),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.sampled_from(["proportional", "exact"]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_a_chain_of_merges_is_one_average_over_the_source(tokens, removed, class_position, keep_order, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tokens, 3, dtype=torch.float64, generator=generator)
    y, size, source, index = x, None, None, tokens // 2
    for r in removed:
        metric = torch.randn(2, y.shape[1], 4, generator=generator)
        plan = match(metric, r, index, keep_order=keep_order, class_position=class_position)
        y, size = merge_wavg(plan, y, size)
        source, index = merge_source(plan, source), plan.class_index
    assert source.shape == (2, y.shape[1], tokens) and (source.sum(1) == 1).all()
    source = source.double()
    torch.testing.assert_close(size, source.sum(2, keepdim=True))
    torch.testing.assert_close(y, source @ x / source.sum(2, keepdim=True))
    class_row = source[:, :, tokens // 2].argmax(1)
    assert (class_row == torch.as_tensor(index)).all()
    assert (source[torch.arange(2), class_row].sum(1) == 1).all()  # nothing was merged into the class token


@CHECKED
@given(st.integers(3, 16), st.integers(1, 6), st.booleans(), st.booleans(), st.data())
def test_a_class_index_per_sample_is_one_match_per_sample(tokens, r, keep_order, exact, data):
    index = torch.tensor(data.draw(st.lists(st.integers(0, tokens - 1), min_size=3, max_size=3)))
    metric = torch.randn(3, tokens, 4, generator=torch.Generator().manual_seed(tokens))
    position = "exact" if exact else "proportional"
    together = match(metric, r, index, keep_order=keep_order, class_position=position)
    for b in range(3):
        alone = match(metric[b : b + 1], r, int(index[b]), keep_order=keep_order, class_position=position)
        for name in ("keep", "source", "destination"):
            assert torch.equal(getattr(together, name)[b], getattr(alone, name)[0])
        assert int(together.class_index[b]) == int(alone.class_index)


@CHECKED
@given(merges())
def test_a_plan_is_deterministic_and_independent_of_the_batch(merge):
    plan, x, options = merge
    if isinstance(options["class_index"], torch.Tensor):
        return
    metric = x.float()
    once, again = (match(metric, **options) for _ in range(2))
    assert torch.equal(once.keep, again.keep) and torch.equal(once.destination, again.destination)
    doubled = match(torch.cat([metric, metric.flip(0)]), **options)
    assert torch.equal(doubled.keep[: len(x)], once.keep)


@pytest.mark.parametrize("mode", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("prune", [False, True])
def test_gradients_of_the_weighted_average(mode, prune):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    size = (torch.rand(2, 9, 1, dtype=torch.float64, generator=generator) + 1).requires_grad_()
    plan = match(x, 3, class_index=4, prune=prune)
    assert torch.autograd.gradcheck(lambda x, size: merge_wavg(plan, x, size, mode), (x, size))
    assert torch.autograd.gradcheck(lambda y: plan.unmerge(y), (x[:, :6].detach().requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_average_keeps_the_type_of_its_tokens(dtype):
    x = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    y, size = merge_wavg(match(x, 4, class_index=6), x)
    assert y.dtype == dtype and size.dtype == torch.promote_types(dtype, torch.float32) and (size.sum(1) == 12).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sizes_and_sums_of_half_precision_are_whole(dtype):
    """A token of 512 patches of 3e4: bf16 counts to 256 alone, and fp16 ends at 65,504."""
    x, size = torch.full((1, 1025, 1), 3e4, dtype=dtype), None
    while x.shape[1] > 3:
        plan = match(x, x.shape[1] // 2, class_index=0)
        x, size = merge_wavg(plan, x, size)
    assert size.sum() == 1025 and size.dtype == torch.float32
    assert x.dtype == dtype and torch.equal(x, torch.full_like(x, 3e4))
