"""The settings of a run: the name of its folder, which says how it merges."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from image_task.config import Config
from image_task.flags import parse
from rmeeto.cli.config import setting_name
from rmeeto.cli.split import split_over
from rmeeto.merge import MergeConfig


def config_of(line: str) -> Config:
    return parse(line.split())[0]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("", "dense"),
        ("--num_prune 0", "dense"),
        ("--num_prune 5 --if_order", "r5"),
        ("--num_prune 11 --if_pruning --metric B --if_order", "r11-prune-metricB"),
        ("--num_prune 5", "r5"),
        ("--num_prune 5 --no_keep_order", "r5-noorder"),
        ("--r 5 --shuffle random --shuffle_rate 0.3 --shuffle none --shuffle_rate 0", "r5"),
        ("--num_prune 5 --if_order --compare 11", "r5-final76"),
        ("--num_prune 5,6 --if_order --if_merge_odd --merge_interval 4", "r5_6-every4-odd"),
        ("--num_prune 5 --if_order --if_shuffle --shuffle_rate 0.3 --choose 3c", "r5-neighbour3-shuffle0.3"),
    ],
)
def test_the_run_folder_is_named_after_what_differs(line, name):
    line += " --model vim_tiny_patch16_224"
    assert config_of(line).folder == Path(f"log/vim_tiny_patch16_224-{name}")
    assert config_of(f"{line} --eval").folder == Path(f"log/vim_tiny_patch16_224-{name}-eval")
    assert config_of(f"{line} --name mine --output_dir runs").folder == Path("runs/mine")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("--data_path D", "vim_nano_patch2_16-dense-IMNET"),
        (
            "--data_set folder --data_path D --input_size 32 --eval",
            "vim_nano_patch2_16-dense-folder-32px-eval",
        ),
        ("--model vim_tiny_patch16_224 --data_path D --input_size 224", "vim_tiny_patch16_224-dense"),
        ("--model vim_tiny_patch16_224 --data_set hfds/a/b", "vim_tiny_patch16_224-dense-hfds.a.b"),
    ],
)
def test_the_run_folder_names_data_that_the_model_is_not_for(line, name):
    assert config_of(line).folder == Path("log") / name


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("a/mine.pth", "mine-"),
        ("runs/dense/best.pt", "dense-"),
        ("w/vim_t_midclstok_76p1acc.pth", ""),
        ("x y!.pt", "x.y-"),
        ("runs/my-run/last.pt", "my-run-last-"),
    ],
)
def test_an_evaluations_folder_names_weights_that_are_not_the_official_ones(weights, name):
    line = ["--model", "vim_tiny_patch16_224", "--num_prune", "5", "--if_order", "--model_pth", weights]
    assert parse([*line, "--eval"])[0].folder == Path(f"log/vim_tiny_patch16_224-r5-{name}eval")
    assert parse(line)[0].folder == Path("log/vim_tiny_patch16_224-r5")


def test_different_settings_have_different_names():
    values = {
        "r": 3, "interval": 3, "odd": True, "metric": "B", "distance": "l2", "mode": "mean", "neighbour": 2,
        "prune": True, "keep_order": False, "class_position": "exact", "final_tokens": 9, "shuffle": "odd-even",
        "window": (1, 3, 3),
    }  # fmt: skip
    configs = [MergeConfig(r=2), *(MergeConfig(**{"r": 2, name: value}) for name, value in values.items())]
    configs += [MergeConfig(r=2, shuffle="random", shuffle_rate=rate) for rate in (0.1, 0.5)]
    configs += [
        MergeConfig(r=2, metric="B", released_flip=True),
        MergeConfig(r=(2, 2)),
        MergeConfig(r=(2, 0.5)),
        MergeConfig(r=0.2),
        MergeConfig(r=2, rule="rmeeto.merge.rules.exact:exact"),
    ]
    assert {field.name for field in dataclasses.fields(MergeConfig)} - values.keys() == {
        "shuffle_rate",
        "released_flip",
        "rule",
    }
    assert len({setting_name(config) for config in configs}) == len(configs)


def test_a_rule_of_ones_own_is_found_in_the_current_folder_and_named_in_the_runs(tmp_path, monkeypatch):
    (tmp_path / "my_rule.py").write_text(
        "from rmeeto.merge.rules import exact\n\n\ndef mine(metric, r, tokens):\n    return exact(metric, r, tokens)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = config_of("--num_prune 3 --rule my_rule:mine")
    assert config.merge.to_dict()["rule"] == config.to_dict()["merge"]["rule"] == "my_rule:mine"
    assert config.folder.name == "vim_nano_patch2_16-r3-my_rule.mine"
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))).merge == config.merge


@pytest.mark.parametrize(("size", "batches"), [(2, 3), (1, 6)])
def test_an_epoch_cut_short_has_as_many_micro_batches_in_any_split(size, batches, tmp_path):
    """Also where it ends within a step: three of two micro-batches a process."""
    line = f"--processes 2 --accumulation 2 --max_train_batches 3 --output_dir {tmp_path}"
    config = split_over(config_of(line), size)
    assert (config.data.max_train_batches, config.optim.accumulation) == (batches, 4 // size)
