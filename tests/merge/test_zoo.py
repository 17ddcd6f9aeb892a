"""The rules beside the paper's: each on every layout, and what makes it itself."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rmeeto
from rmeeto.measure import count_flops, trace
from rmeeto.merge import MergeConfig, match, merge_wavg
from rmeeto.merge.rules import adjacent, energy, random
from tests.merge.test_rules import IMAGES, deit, vim
from tests.test_patch import upstream

ZOO = ("adjacent", "energy", "importance", "random", "shift")
OWN_SOURCES = ("energy", "importance", "shift")
CHECKED = settings(deadline=None, derandomize=True, max_examples=60)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plan_of(rule, metric, r, index=None, **options):
    batch, num = metric.shape[:2]
    features = {"delta": draw(batch, num, 6, seed=1), "output": draw(batch, num, 4, seed=2)}
    features = {name: x.to(metric.dtype) for name, x in features.items()} | options.pop("features", {})
    return match(metric, r, index, rule=rule, features=features, **options)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("keep", "source", "destination"))


def pairs(plan, sample=0):
    """Each source and the token that it goes into, by their positions before the merge."""
    into = plan.keep.gather(1, plan.destination)
    return sorted(zip(plan.source[sample].tolist(), into[sample].tolist()))


@CHECKED
@given(st.sampled_from(ZOO), st.integers(2, 30), st.integers(1, 20), st.booleans(), st.data())
def test_every_layout(name, num, r, prune, data):
    kind = data.draw(st.sampled_from(["none", "per sample", "exact", "prefix"]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    options, index, prefix = {"prune": prune}, None, 0
    if kind == "prefix":
        prefix = options["prefix"] = data.draw(st.integers(0, min(4, num)))
    elif kind != "none":
        index = torch.tensor([data.draw(st.integers(0, num - 1)) for _ in range(3)])
        options["class_position"] = "exact" if kind == "exact" else "proportional"
    plan = plan_of(name, draw(3, num, 4).to(dtype), r, index, **options)
    most = {"none": num // 2 if num > 2 else 0, "prefix": (num - prefix) // 2}.get(kind, (num - 1) // 2)
    removed = min(r, most)
    assert plan.source.shape == plan.destination.shape == (3, removed)
    _, size = merge_wavg(plan, draw(3, num, 2))
    assert size.sum(1).eq(num - removed if prune else num).all()
    protected = torch.arange(prefix).expand(3, -1) if index is None else index.unsqueeze(1)
    for sample, kept in enumerate(plan.keep.tolist()):
        gone = [token for pair in pairs(plan, sample) for token in pair]
        assert not set(gone) & set(protected[sample].tolist())
        patches = [token for token in kept if index is None or token != index[sample]]
        assert patches == sorted(patches)
        assert sorted(kept + plan.source[sample].tolist()) == list(range(num))


@pytest.mark.parametrize("name", ZOO)
def test_a_sample_is_matched_alike_in_any_batch_and_ties_go_to_the_lower_position(name):
    metric = draw(3, 21, 4)
    features = {"delta": draw(3, 21, 6, seed=1), "output": draw(3, 21, 4, seed=2)}
    together = match(metric, 5, 10, rule=name, features=features)
    for sample in range(3):
        alone = match(
            metric[sample : sample + 1],
            5,
            10,
            rule=name,
            features={n: x[sample : sample + 1] for n, x in features.items()},
        )
        assert pairs(together, sample) == pairs(alone)
    alike = {"metric": torch.ones(1, 9, 4), "features": {n: torch.ones(1, 9, 4) for n in features}}
    tied = {
        "adjacent": [(0, 1), (2, 1)],  # of patches 0 to 7, the zone of 2 round token 4 left out
        "energy": [(0, 1), (2, 1)],
        "importance": [(0, 2), (1, 2)],
        "shift": [(0, 2), (1, 2)],
    }
    if name in tied:
        plan = match(alike["metric"], 2, 8, rule=name, features=alike["features"])
        assert pairs(plan) == tied[name]


@pytest.mark.parametrize(("name", "keep_order"), [*((name, True) for name in ZOO), ("exact", False)])
def test_rules_are_exported_with_a_free_batch(name, keep_order):
    class Matching(nn.Module):
        def forward(self, metric, delta, output):
            features = {"delta": delta, "output": output}
            return match(metric, 3, 4, keep_order=keep_order, rule=name, features=features).merge(metric)

    inputs = tuple(draw(2, 11, 4, seed=seed) for seed in range(3))
    batch = torch.export.Dim("batch")
    program = torch.export.export(Matching(), inputs, dynamic_shapes=({0: batch},) * 3)
    larger = tuple(draw(5, 11, 4, seed=seed) for seed in range(3))
    torch.testing.assert_close(program.module()(*larger), Matching()(*larger))


@pytest.mark.parametrize("name", ZOO)
def test_models_merge_by_every_rule(name):
    model = vim(MergeConfig(r=3, rule=name))
    source = trace(model, IMAGES)
    assert source.shape == (2, 11, 17) and source.sum(1).eq(1).all()
    model(IMAGES).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert model(IMAGES).isfinite().all()
    for other in (deit, lambda merge: rmeeto.apply(upstream(img_size=16, patch_size=4), merge)):
        if name == "importance":
            with pytest.raises(ValueError, match="rule='importance' asks for delta, which it does not have"):
                other(MergeConfig(r=2, rule=name))
        else:
            assert other(MergeConfig(r=2, rule=name))(IMAGES).isfinite().all()


def test_unordered_tokens_are_refused_where_a_rule_chooses_its_sources():
    for name in OWN_SOURCES:
        with pytest.raises(ValueError, match=f"keep_order=False with rule='{name}'"):
            MergeConfig(r=2, rule=name, keep_order=False)
        with pytest.raises(ValueError, match="needs keep_order=True"):
            plan_of(name, draw(2, 9, 4), 2, 4, keep_order=False)
    for name in set(ZOO) - set(OWN_SOURCES):
        ordered, plan = (plan_of(name, draw(2, 9, 4), 2, 4, keep_order=keep) for keep in (True, False))
        assert pairs(plan) == pairs(ordered) and plan.keep.tolist() != ordered.keep.tolist()
        assert vim(MergeConfig(r=2, rule=name, keep_order=False))(IMAGES).isfinite().all()


def test_a_shuffle_is_refused_where_a_rule_asks_for_what_is_not_shuffled_along():
    with pytest.raises(ValueError, match="shuffle='odd-even' with rule='importance', which asks for delta"):
        MergeConfig(r=2, rule="importance", shuffle="odd-even")
    assert vim(MergeConfig(r=2, rule="shift", shuffle="odd-even"))(IMAGES).isfinite().all()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        self.numel = max([self.numel, *(x.numel() for x in made if isinstance(x, torch.Tensor))])
        return out


def test_adjacent_makes_nothing_that_grows_with_the_square():
    metric = draw(1, 1001, 4)
    found = {}
    for name in ("adjacent", "exact"):
        with Largest() as largest:
            match(metric, 100, 0, rule=name)
        found[name] = largest.numel
    assert found["adjacent"] == 1001 * 4 and found["exact"] == 500 * 500


@CHECKED
@given(st.integers(3, 24), st.data())
def test_adjacent_merges_neighbours_and_leaves_the_class_token_s_zone_to_the_last(num, data):
    index, zone = data.draw(st.integers(0, num - 1)), data.draw(st.integers(0, 3))
    r = data.draw(st.integers(1, (num - 1) // 2))
    metric = draw(1, num, 4, seed=num)
    plan = match(metric, r, index, rule=functools.partial(adjacent, zone=zone))

    def patch(token):
        return token - (token > index)

    def near(pair):
        return any(abs(token - index) <= zone for token in pair)

    merged = pairs(plan)
    assert all(patch(source) % 2 == 0 and abs(patch(source) - patch(into)) == 1 for source, into in merged)
    tokens = [token for token in range(num) if token != index]
    free = {
        tokens[source]
        for source in range(0, num - 1, 2)
        for into in (source - 1, source + 1)
        if 0 <= into < num - 1 and not near((tokens[source], tokens[into]))
    }
    assert sum(near(pair) for pair in merged) == max(0, r - len(free))


def test_adjacent_takes_the_more_similar_side():
    metric = torch.tensor([[[1.0, 0], [1, 0.2], [0, 1], [0.1, 1], [-1, 0], [-1, 1]]])
    assert pairs(match(metric, 2, prefix=0, rule="adjacent")) == [(0, 1), (2, 3)]
    assert pairs(match(metric.flip(1), 2, prefix=0, rule="adjacent")) == [(2, 3), (4, 5)]


@pytest.mark.parametrize("name", ["importance", "shift"])
def test_the_least_important_go_into_those_next_in_importance(name):
    metric, score = draw(2, 17, 4), draw(2, 17, 1, seed=3)
    # Mean step size, or the norm of the output, is the score.
    feature = {"delta": score.expand(-1, -1, 5)} if name == "importance" else {"output": 3 + score}
    plan = match(metric, 4, 8, rule=name, features=feature)
    unit = nn.functional.normalize(metric, dim=-1)
    for sample in range(2):
        order = [t for t in score[sample, :, 0].argsort().tolist() if t != 8]
        sources, destinations = order[:4], order[4:10]  # 16 tokens that may merge; half of the 12 others
        expected = [(s, max(destinations, key=lambda d: float(unit[sample, s] @ unit[sample, d]))) for s in sources]
        assert pairs(plan, sample) == sorted(expected)


def test_shift_looks_at_what_the_mixer_adds():
    model, outputs = vim(MergeConfig(r=(3, 0), rule="shift")), []
    model.layers[1].mixer.register_forward_hook(lambda *hooked: outputs.append(hooked[2]))
    source = trace(model, IMAGES)  # (B, 14, 17)
    norms = outputs[0].norm(dim=-1)
    norms[:, model.class_index] = torch.inf
    for sample in range(2):
        merged = source[sample][source[sample].sum(1) > 1].sum(0)  # 1 for tokens that went, or that others went into
        assert merged[norms[sample].argsort()[:3]].eq(1).all() and merged.sum() <= 6


def naive_energy(metric, r, margin=0.45):
    """Token by token, as the source words it: (L, C) -> pairs."""
    unit = [v / v.norm() for v in metric.double()]
    cosine = [[float(a @ b) for b in unit] for a in unit]
    f = [[x if x >= margin else torch.tensor(x - margin).exp().item() - 1 for x in row] for row in cosine]
    ranked = sorted(range(len(unit)), key=lambda i: -sum(f[i]))[: 2 * r]
    sources, destinations = ranked[0::2], ranked[1::2]
    return sorted((s, max(destinations, key=lambda d: cosine[s][d])) for s in sources)


def test_energy_is_the_definition_s():
    metric = draw(3, 14, 4)
    plan = match(metric, 4, prefix=0, rule="energy")
    for sample in range(3):
        assert pairs(plan, sample) == naive_energy(metric[sample], 4)
    wide = match(metric, 4, prefix=0, rule=functools.partial(energy, margin=0.9))
    assert [pairs(wide, s) for s in range(3)] == [naive_energy(metric[s], 4, 0.9) for s in range(3)]


def test_energy_protects_isolated_tokens():
    alike, isolated = torch.tensor([1.0, 0, 0, 0, 0]).expand(8, 5), torch.eye(5)[1:]
    metric = torch.cat([isolated[:2], alike, isolated[2:]]).unsqueeze(0)
    merged = {token for pair in pairs(match(metric, 4, prefix=0, rule="energy")) for token in pair}
    assert len(merged) == 5 and merged < set(range(2, 10))  # four of them go into the first of the other four


def test_random_is_a_function_of_its_seed_and_the_number_of_tokens():
    state = torch.get_rng_state()
    one, other = (match(draw(3, 33, 4, seed=seed), 9, 16, rule="random") for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(one, other) and all(pairs(one, sample) == pairs(one) for sample in range(3))
    seeded = [match(draw(1, 33, 4), 9, 16, rule=functools.partial(random, seed=seed)) for seed in range(400)]
    assert same(seeded[0], match(draw(1, 33, 4), 9, 16, rule="random"))
    for drawn in ([p.source for p in seeded], [p.keep.gather(1, p.destination) for p in seeded]):
        counts = torch.cat(drawn).flatten().bincount(minlength=33)
        counts = counts[counts > 0]  # 16 of each, 9 drawn: 225 times each within 4 standard deviations
        assert len(counts) == 16 and (counts - 225).abs().max() < 4 * 15
    assert pairs(match(draw(1, 32, 4), 9, 16, rule="random")) != pairs(seeded[0])


def test_what_the_rules_cost():
    cost = {name: count_flops(vim(MergeConfig(r=3, rule=name)), 16).parts["matching"] for name in ("exact", *ZOO)}
    norms = 6 * 16 * (17 + 14)  # 17 and 14 tokens of 16 channels, one of them the class token
    assert cost["exact"] == norms + 16 * (17**2 + 14**2) // 2
    assert cost["adjacent"] == norms + 16 * (15 + 12)
    assert cost["energy"] == norms + 16 * (16**2 + 13**2)
    assert cost["importance"] == cost["shift"] == norms + 16 * 3 * (7 + 5)
    assert cost["random"] == 0


def test_a_rule_that_can_change_is_one_error():
    @dataclass
    class Mine:
        def __call__(self, metric, r, tokens):
            return tokens.plan(metric, metric, r)

    with pytest.raises(ValueError, match=r"rule=.*Mine\(\) has no hash; make it unchangeable"):
        MergeConfig(r=3, rule=Mine())
