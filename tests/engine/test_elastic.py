"""Training one set of weights at several r (`--elastic_r`)."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
import torch
from torch import nn

import image_task.main
import video_task.main
from image_task.flags import parse
from rmeeto import MergeConfig
from rmeeto.engine import OptimConfig, checkpoint
from rmeeto.engine.elastic import Elastic
from rmeeto.errors import UserError
from tests.engine.test_loop import Cut, cut_at, log_of, same, train
from tests.engine.toy import ToyData, ToyMerging

RS = (5, 0, 16, 11)


def optim(**settings):
    return OptimConfig(**{"lr": 1e-2, "epochs": 2, "accumulation": 2, "elastic_r": RS, **settings})


def test_each_step_takes_the_largest_the_smallest_and_one_between():
    model = ToyMerging()
    drawn = [Elastic(model, RS, seed=0).draw(step) for step in range(1000)]
    assert all(rs[:2] == [16, 0] and len(rs) == 3 for rs in drawn)
    between = Counter(rs[2] for rs in drawn)
    assert between.keys() == {5, 11} and min(between.values()) > 430
    assert Elastic(model, (11, 0), seed=0).draw(3) == [11, 0]
    assert drawn != [Elastic(model, RS, seed=1).draw(step) for step in range(1000)]


def test_a_step_is_the_mean_over_its_passes_and_evaluation_is_at_the_models_own_r(tmp_path):
    model = ToyMerging()
    train(tmp_path, optim(epochs=1, accumulation=1, weight_decay=0.0), ToyData(total=1), model=model)
    assert set(model.seen["eval"]) == {11} and model.merge_config == MergeConfig(r=11)

    expected = ToyMerging()
    ((images, targets),) = ToyData(total=1).train_batches(0)
    step = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for r in model.seen["train"]:
        expected.merge_config = dataclasses.replace(expected.merge_config, r=r)
        losses.append(nn.functional.cross_entropy(expected(images), targets))
    torch.stack(losses).mean().backward()
    step.step()
    torch.testing.assert_close(model.head.weight, expected.head.weight)
    (line,) = [line for line in log_of(tmp_path) if line["event"] == "train"]
    assert line["loss"] == pytest.approx(torch.stack(losses).mean().item())


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_a_resumed_run_draws_the_same(tmp_path, checkpoint_every):
    settings = {"optim": optim(), "checkpoint_every": checkpoint_every}
    whole, rest = ToyMerging(), ToyMerging()
    train(tmp_path / "whole", model=whole, **settings)
    with pytest.raises(Cut):
        train(tmp_path / "cut", data=cut_at(ToyData(), 1, 5), model=ToyMerging(), **settings)
    train(tmp_path / "cut", model=rest, resume=True, **settings)
    assert rest.seen["train"] == whole.seen["train"][-len(rest.seen["train"]) :]
    states = [checkpoint.load(tmp_path / kind / "toy" / "last.pt") for kind in ("whole", "cut")]
    assert same(*states) and log_of(tmp_path / "whole") == log_of(tmp_path / "cut")


@pytest.mark.parametrize("model", [ToyMerging(r=0.1), ToyMerging(r=(3, 4)), nn.Linear(2, 2)], ids=str)
def test_a_model_without_one_r_is_refused(model):
    with pytest.raises(UserError, match="takes the place of one r, and the model has "):
        Elastic(model, RS, seed=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--elastic_r 0,5",
            r"--elastic_r has no effect: the model does not merge \(--r is what it is evaluated at\)",
        ),
        ("--elastic_r 0,5 --merge_method none", "--elastic_r has no effect: the model does not merge"),
        ("--elastic_r 0,5 --r 0.1", "--elastic_r has no effect: it takes the place of one whole number r"),
        ("--elastic_r 0,5 --r 8,-1.0", "--elastic_r has no effect: it takes the place of one whole number r"),
        ("--elastic_r 5 --r 5", "two or more different numbers of tokens, such as 0,5,11,16"),
        ("--elastic_r 5,5 --r 5", "two or more different numbers of tokens"),
        ("--elastic_r 0,-5 --r 5", "--elastic_r .* expected"),
        ("--elastic_r 0,0.5 --r 5", "--elastic_r .* expected whole numbers or none"),
    ],
)
def test_what_it_cannot_do_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        parse(flags.split())


def test_the_flag_is_kept_in_the_config_and_the_folders_name():
    config, _, _ = parse("--elastic_r 0,5,11 --r 11".split())
    assert config.optim.elastic_r == (0, 5, 11)
    assert config.folder.name == "vim_nano_patch2_16-r11-elastic0_5_11"
    assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize("main", [image_task.main.main, video_task.main.main], ids=["images", "clips"])
def test_both_tasks_train_at_several_r(main, tmp_path, capsys):
    line = f"--smoke --device cpu --r 4 --elastic_r 0,4,8 --distill --output_dir {tmp_path} --name elastic"
    assert main(line.split()) == 0
    assert "each step at 2 or 3 of r = 0, 4, 8" in " ".join(capsys.readouterr().out.split())
    config = json.loads((tmp_path / "elastic-smoke" / "config.json").read_text())
    assert config["optim"]["elastic_r"] == [0, 4, 8] and config["merge"]["r"] == 4
