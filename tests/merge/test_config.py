"""`MergeConfig`: what it accepts, what it refuses, and how it travels."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from image_task.models import Vim
from rmeeto.merge import MergeConfig
from rmeeto.merge.released import final_tokens_from_compare, parse_choose


def test_defaults_are_the_papers():
    assert MergeConfig().to_dict() == {
        "r": 0,
        "interval": 2,
        "odd": False,
        "metric": "X",
        "distance": "cosine",
        "mode": "sum",
        "neighbour": 1,
        "prune": False,
        "keep_order": True,
        "class_position": "proportional",
        "final_tokens": None,
        "shuffle": None,
        "shuffle_rate": 0.0,
        "released_flip": False,
        "window": None,
        "rule": "exact",
    }


@pytest.mark.parametrize(
    ("fields", "got", "expected"),
    [
        ({"r": -1}, "r=-1", "0 or more"),
        ({"r": 1.5}, "r=1.5", "a share of the tokens"),
        ({"r": "5"}, "r='5'", "an int"),
        ({"r": True}, "r=True", "an int"),
        ({"r": None}, "r=None", "an int"),
        ({"r": ()}, "r=()", "an int"),
        ({"r": (5, -2, 1)}, "r=(5, -2, 1)", "0 or more"),
        ({"r": (5, 1.5)}, "r=(5, 1.5)", "[-1.0, 1.0]"),
        ({"r": (-5, 0.5)}, "r=(-5, 0.5)", "r >= 0"),
        ({"r": (5, 6, 0.5)}, "r=(5, 6, 0.5)", "integers of 0 or more"),
        ({"interval": 0}, "interval=0", ">= 1"),
        ({"interval": 2.0}, "interval=2.0", "an integer"),
        ({"neighbour": 0}, "neighbour=0", ">= 1"),
        ({"final_tokens": 0}, "final_tokens=0", ">= 1"),
        ({"metric": "Z"}, "metric='Z'", "'delta'"),
        ({"distance": "dot"}, "distance='dot'", "'cosine'"),
        ({"mode": "max"}, "mode='max'", "'amax'"),
        ({"class_position": "first"}, "class_position='first'", "'proportional'"),
        ({"shuffle": "all"}, "shuffle='all'", "'odd-even'"),
        ({"shuffle": "random", "shuffle_rate": 1.1}, "shuffle_rate=1.1", "[0, 1]"),
        ({"shuffle": "random", "shuffle_rate": float("nan")}, "shuffle_rate=nan", "[0, 1]"),
        ({"shuffle_rate": 0.3}, "shuffle_rate=0.3", 'set shuffle="random"'),
        ({"shuffle": "odd-even", "shuffle_rate": 0.3}, "shuffle_rate=0.3", 'set shuffle="random"'),
    ],
)
def test_a_bad_value_is_refused_with_what_was_got_and_expected(fields, got, expected):
    with pytest.raises(ValueError) as error:
        MergeConfig(**fields)
    message = str(error.value)
    assert message.startswith("MergeConfig: ") and got in message and expected in message
    assert len(message.splitlines()) <= 2


def test_a_config_cannot_be_changed_after_its_check():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MergeConfig().r = -1


@pytest.mark.parametrize(
    "config",
    [
        MergeConfig(),
        MergeConfig(r=5, interval=4, odd=True, metric="delta", distance="l1", mode="amax", neighbour=7),
        MergeConfig(r=(1, 2, 3), prune=True, keep_order=False, class_position="exact", final_tokens=76),
        MergeConfig(r=(8, -0.5), shuffle="random", shuffle_rate=0.3, released_flip=True),
        MergeConfig(r=(8, 1.0), shuffle="odd-even"),
    ],
    ids=str,
)
def test_a_config_survives_json(config):
    values = json.loads(json.dumps(config.to_dict()))
    assert MergeConfig(**values) == config
    assert hash(MergeConfig(**values)) == hash(config)
    assert set(values) == {field.name for field in dataclasses.fields(MergeConfig)}


def test_a_list_of_r_is_the_tuple():
    assert MergeConfig(r=[3, 2, 1]) == MergeConfig(r=(3, 2, 1))


@pytest.mark.parametrize(
    ("r", "inflection"), [(8, None), ((8, 4), None), ((8, -1.0), -1.0), ([8, 0.5], 0.5), ((8, 4, 2), None)]
)
def test_only_a_float_second_value_is_an_inflection(r, inflection):
    assert MergeConfig(r=r).inflection == inflection


@pytest.mark.parametrize(
    ("fields", "active"),
    [
        ({}, False),
        ({"r": 1}, True),
        ({"r": (0, 0)}, False),
        ({"r": (0, 3)}, True),
        ({"r": (0, 1.0)}, False),
        ({"r": (4, -1.0)}, True),
        ({"final_tokens": 76}, True),
        ({"shuffle": "odd-even"}, True),
        ({"shuffle": "random", "shuffle_rate": 0.3}, True),
        ({"shuffle": "random", "shuffle_rate": 0.0}, False),
    ],
)
def test_is_active_says_whether_a_model_differs_from_the_dense_one(fields, active):
    assert MergeConfig(**fields).is_active is active


@pytest.mark.parametrize("metric", ["X", "B", "C", "delta", "Q", "K", "V"])
def test_needs_ssm(metric):
    assert MergeConfig(metric=metric).needs_ssm is (metric in ("B", "C", "delta"))


def test_released_settings_are_mapped():
    merge_para = {
        "num_prune": 11,
        "merge_interval": 4,
        "if_merge_odd": True,
        "metric": "delta",
        "distance": "l2",
        "merge_mode": "mean",
        "choose": "14c",
        "if_pruning": True,
        "if_order": False,
        "if_shuffle": True,
        "shuffle_rate": 0.3,
        "compare": 11,
    }
    assert MergeConfig.from_released(merge_para) == MergeConfig(
        r=11,
        interval=4,
        odd=True,
        metric="delta",
        distance="l2",
        mode="mean",
        neighbour=14,
        prune=True,
        keep_order=False,
        shuffle="random",
        shuffle_rate=0.3,
        final_tokens=76,
    )


def test_both_released_names_of_pruning_are_known():
    assert MergeConfig.from_released({"if_prune": True}).prune
    assert MergeConfig.from_released({"if_pruning": True}).prune


def test_the_released_last_merge_comes_only_with_compare():
    assert MergeConfig.from_released({"num_prune": 5}) == MergeConfig(r=5)
    assert MergeConfig.from_released({"num_prune": 5, "compare": 15}).final_tokens == 197 - 11 * 15


def test_overrides_win_over_the_released_settings():
    assert MergeConfig.from_released({"num_prune": 5, "if_order": False}, r=7).r == 7


def test_an_unknown_released_key_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown key 'num_merge'.*num_prune"):
        MergeConfig.from_released({"num_merge": 5})


@pytest.mark.parametrize(("choose", "neighbour"), [("max", 1), ("1c", 1), ("3c", 3), ("14c", 14), ("21c", 21)])
def test_choose_is_a_rank(choose, neighbour):
    assert parse_choose(choose) == neighbour


@pytest.mark.parametrize("choose", ["min", "c", "0c", "-3c", "3", "", 3, None, "3cc"])
def test_another_choose_is_refused(choose):
    with pytest.raises(ValueError, match="'max' or a rank"):
        parse_choose(choose)


@pytest.mark.parametrize(("compare", "tokens"), [(0, 197), (11, 76), (16, 21), (17, 10), (18, 1), (100, 1)])
def test_compare_is_a_final_token_count(compare, tokens):
    assert final_tokens_from_compare(compare) == tokens


@pytest.mark.parametrize("compare", [-1, 1.5, "11", None, True])
def test_another_compare_is_refused(compare):
    with pytest.raises(ValueError, match="0 or more"):
        final_tokens_from_compare(compare)


def test_a_model_reads_every_field():
    read = set()

    class Recorded(MergeConfig):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    config = Recorded(r=4, shuffle="random", shuffle_rate=0.5)
    read.clear()
    Vim(16, 4, 4, embed_dim=16, depth=3, num_classes=2, merge=config)(torch.zeros(1, 3, 16, 16))
    assert {field.name for field in dataclasses.fields(MergeConfig)} <= read | {
        "rule",
        "window",
    }  # which the settings read when they are made
