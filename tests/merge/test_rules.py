"""The seam: what every rule keeps, what a rule may ask for, and rules from outside the package."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rmeeto
from image_task.models import Deit, Vim
from rmeeto.measure import count_flops, trace
from rmeeto.merge import RULES, MergeConfig, Tokens, find_rule, match, merge_source, merge_wavg
from rmeeto.merge.rules import FEATURES, cost
from rmeeto.nn import VisionMamba
from tests.test_patch import upstream

CHECKED = settings(deadline=None, derandomize=True, max_examples=60)


def dot(metric, r, tokens):
    sources, destinations = tokens.split(metric)
    return tokens.plan(*tokens.best(sources @ destinations.mT), r)


def vim(merge=None, depth=5, **arguments):
    torch.manual_seed(0)
    return Vim(16, 4, 4, embed_dim=16, depth=depth, d_state=4, num_classes=3, merge=merge, **arguments).eval()


def deit(merge=None):
    torch.manual_seed(0)
    return Deit(16, 4, embed_dim=24, depth=4, num_heads=2, num_classes=3, merge=merge).eval()


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@CHECKED
@given(st.sampled_from(sorted(RULES)), st.integers(3, 40), st.integers(1, 20), st.data())
def test_every_rule_keeps_tokens_sizes_order_and_the_class_token(name, num, r, data):
    index = data.draw(st.integers(0, num - 1))
    generator = torch.Generator().manual_seed(num)

    def draw(*shape):
        return torch.randn(2, num, *shape, generator=generator)

    features = {feature: draw(5) for feature in FEATURES} | {"size": draw(1).abs() + 1}
    window = (1, 1, 3) if name == "window" else None
    plan = match(draw(4), r, index, window=window, grid=(1, 1, num - 1), rule=name, features=features)
    removed = min(r, (num - 1) // 2)
    assert plan.source.shape == plan.destination.shape == (2, removed) and plan.num_tokens == num - removed
    _, size = merge_wavg(plan, draw(3))
    assert (size.sum(1) == num).all() and (merge_source(plan).sum(1) == 1).all()
    assert not (plan.source == index).any() and (size[:, plan.class_index] == 1).all()
    assert (plan.keep[:, plan.class_index] == index).all()
    for kept in plan.keep.tolist():
        patches = [token for token in kept if token != index]
        assert patches == sorted(patches)


def test_a_function_is_a_rule():
    model = vim(MergeConfig(r=3, rule=dot))
    assert model.num_tokens == [17, 17, 14, 14, 11]
    source = trace(model, IMAGES)
    assert source.shape == (2, 11, 17) and (source.sum(1) == 1).all()
    model(IMAGES).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert trace(deit(MergeConfig(r=2, rule=dot)), IMAGES).shape == (2, 9, 17)
    foreign = rmeeto.apply(upstream(), MergeConfig(r=2, rule=dot))
    assert foreign.merge_config.rule is dot


def test_on_unit_vectors_the_dot_product_is_the_exact_rule():
    metric = nn.functional.normalize(torch.randn(2, 21, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    one, other = match(metric, 5, 10), match(metric, 5, 10, rule=dot)
    assert torch.equal(one.keep, other.keep) and torch.equal(one.destination, other.destination)


@pytest.mark.parametrize("make", [vim, deit])
def test_a_rule_gets_what_its_parameters_name(make):
    seen = {}
    names = ("output", "hidden", "size", "delta", "B") if make is vim else ("output", "hidden", "size", "Q", "V")

    def asking(metric, r, tokens, *, distance, mine=2.0, **features):
        seen.update(features, distance=distance, mine=mine)
        return dot(metric, r, tokens)

    parameters = ", ".join(f"{name}=None" for name in names)
    scope = {"asking": asking}
    exec(
        f"def rule(metric, r, tokens, *, distance, {parameters}):\n"
        f"    return asking(metric, r, tokens, distance=distance, {', '.join(f'{n}={n}' for n in names)})",
        scope,
    )
    make(MergeConfig(r=2, distance="l2", rule=scope["rule"]))(IMAGES)
    assert seen["distance"] == "l2" and seen["mine"] == 2.0
    assert all(seen[name].shape[0] == 2 and not seen[name].requires_grad for name in names)
    assert seen["size"].min() >= 1 and seen["hidden"].shape == seen["output"].shape
    assert not torch.equal(seen["hidden"], seen["output"])


def delta_rule(metric, r, tokens, *, delta):
    return dot(delta, r, tokens)


def test_a_rule_that_asks_for_what_a_model_has_not_is_refused():
    vim(MergeConfig(r=2, rule=delta_rule))(IMAGES)
    with pytest.raises(ValueError, match="Deit: rule=.*delta_rule.* asks for delta"):
        deit(MergeConfig(r=2, rule=delta_rule))
    with pytest.raises(ValueError, match="asks for delta; give it in features"):
        match(IMAGES.flatten(2), 1, 0, rule=delta_rule)


def write_rule(tmp_path, monkeypatch, body):
    (tmp_path / "outside_rule.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "outside_rule", raising=False)


def test_a_rule_of_another_module_goes_by_its_name_through_json(tmp_path, monkeypatch):
    write_rule(
        tmp_path,
        monkeypatch,
        "def mine(metric, r, tokens):\n"
        "    a, b = tokens.split(metric)\n"
        "    return tokens.plan(*tokens.best(a @ b.mT), r)\n",
    )
    config = MergeConfig(r=3, rule="outside_rule:mine")
    again = MergeConfig(**json.loads(json.dumps(config.to_dict())))
    assert again == config and again.rule == "outside_rule:mine"
    assert torch.equal(vim(config)(IMAGES), vim(MergeConfig(r=3, rule=dot))(IMAGES))
    assert MergeConfig(rule=config.matching.function).to_dict()["rule"] == "outside_rule:mine"
    assert MergeConfig(rule=RULES["exact"]) == MergeConfig()


def test_a_rule_says_what_it_costs():
    @cost(lambda tokens, width, **_: tokens.num * width)
    def linear(metric, r, tokens):
        return dot(metric, r, tokens)

    costs = {
        rule: count_flops(vim(MergeConfig(r=3, rule=rule)), 16).parts["matching"]
        for rule in (linear, functools.partial(linear), "exact", dot)
    }
    values = list(costs.values())
    assert values[:2] == [(17 + 14) * 16] * 2
    assert values[2] == values[3] == sum(6 * n * 16 + 16 * n * n // 2 for n in (17, 14))


def test_a_share_of_the_tokens_is_a_fixed_count():
    model = vim(MergeConfig(r=0.2))
    assert model.num_tokens == [17, 17, 14, 14, 11]
    assert MergeConfig(r=0.2).is_active and not MergeConfig(r=0.0).is_active
    assert MergeConfig(**json.loads(json.dumps(MergeConfig(r=0.2).to_dict()))) == MergeConfig(r=0.2)
    assert deit(MergeConfig(r=0.1)).num_tokens == [17, 15, 13, 12]


def nothing(metric, r):
    return metric


def unknown(metric, r, tokens, alpha):
    return metric


def wrong(metric, r, tokens):
    return metric


def too_few(metric, r, tokens):
    return tokens.identity(len(metric), metric.device)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "exat"}, "expected one of exact, .*package.module:function"),
        ({"rule": "no_such_module:rule"}, "cannot be imported: No module named"),
        ({"rule": "json:no_such_rule"}, "cannot be imported: module 'json' has no attribute"),
        ({"rule": "os:.."}, "expected one of"),
        ({"rule": 3}, "expected a name or a function"),
        ({"rule": nothing}, r"has the parameters \['metric', 'r'\]"),
        ({"rule": unknown}, "'alpha'.*others only with a default"),
        ({"rule": dot, "distance": "l1"}, "distance='l1' has no effect with rule="),
        ({"rule": dot, "neighbour": 3}, "neighbour=3 has no effect with rule="),
        ({"rule": "window"}, "without its window"),
        ({"keep_order": "no"}, "keep_order='no'; expected True or False"),
        ({"odd": "l2"}, "odd='l2'; expected True or False"),
        ({"shuffle_rate": "X"}, "shuffle_rate='X'; expected a share"),
        ({"metric": ["X"]}, "metric=.*expected one of"),
        ({"r": 0.6}, "r=0.6; expected a share of the tokens"),
        ({"r": float("nan")}, "r=nan; expected a share"),
    ],
)
def test_settings_that_are_no_rules_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MergeConfig(**{"r": 2, **settings})


def test_what_a_rule_gives_is_checked():
    for rule, got in ((wrong, "gave a Tensor"), (too_few, "gave a plan that removes 0 of 17 tokens")):
        with pytest.raises(ValueError, match=got):
            vim(MergeConfig(r=2, rule=rule))(IMAGES)


def test_a_rule_without_a_name_merges_but_is_not_written():
    config = MergeConfig(r=2, rule=lambda metric, r, tokens: dot(metric, r, tokens))
    vim(config)(IMAGES)
    with pytest.raises(ValueError, match="no name to be written by"):
        config.to_dict()


def test_pairs_of_any_tokens_make_a_plan():
    def neighbours(metric, r, tokens):
        source = torch.arange(1, 2 * r, 2).expand(len(metric), -1)  # patches 1, 3, ... go into 0, 2, ...
        return tokens.pair(source, source - 1)

    plan = match(torch.randn(2, 9, 3), 3, 4, rule=neighbours)
    assert plan.source.tolist()[0] == [1, 3, 6] and plan.class_index == 2
    assert plan.keep.tolist()[0] == [0, 2, 4, 5, 7, 8]
    with pytest.raises(ValueError, match="needs keep_order=True"):
        match(torch.randn(2, 9, 3), 3, 4, keep_order=False, rule=neighbours)
    prefixed = match(torch.randn(2, 9, 3), 2, prefix=0, rule=neighbours)
    assert prefixed.keep.tolist()[0] == [0, 2, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("rule", [*sorted(set(RULES) - {"window"}), dot])
def test_rules_compile_into_one_graph(rule):
    model = vim(MergeConfig(r=3, rule=rule, interval=1), depth=3)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(IMAGES), model(IMAGES))


class GatedConv(nn.Module):
    """A mixer of another kind."""

    def __init__(self, dim):
        super().__init__()
        self.conv, self.gate = nn.Conv1d(dim, dim, 3, padding=1, groups=dim), nn.Linear(dim, dim)

    def forward(self, x):
        return self.conv(x.transpose(1, 2)).transpose(1, 2) * self.gate(x).sigmoid()

    def macs(self, num_tokens):
        return num_tokens * (self.gate.weight.numel() + self.conv.weight.numel())


def test_a_model_takes_another_mixer():
    model = vim(MergeConfig(r=3), mixer=GatedConv)
    assert isinstance(model, VisionMamba) and model.metrics == ("X",)
    assert model(IMAGES).shape == (2, 3) and model.num_tokens[-1] == 11
    counted = count_flops(model, 16)
    assert counted.parts["mixer"] == sum(GatedConv(16).macs(n) for n in model.num_tokens)
    assert counted.parts["scan"] == 0 and counted.total == sum(counted.parts.values())
    assert trace(model, IMAGES).shape == (2, 11, 17)
    with pytest.raises(ValueError, match="metric='B'; its mixer has X"):
        model.merge_config = MergeConfig(r=3, metric="B")


def test_a_layout_says_what_may_go():
    tokens = Tokens(9, 4)
    assert tokens.patches().tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert (tokens.num_sources, tokens.num_destinations, tokens.limit(99)) == (4, 4, 4)
    sources, destinations = tokens.split(torch.arange(9).expand(1, -1))
    assert sources.tolist() == [[0, 2, 5, 7]] and destinations.tolist() == [[1, 3, 6, 8]]
    assert find_rule("exact").options == ("distance", "neighbour") and find_rule("window").needs == ("cell",)
