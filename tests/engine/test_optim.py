from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from timm.scheduler import CosineLRScheduler

from rmeeto.engine import OptimConfig, build_optimizer, lr_at, scaled_lr
from rmeeto.engine.optim import set_lr
from rmeeto.errors import UserError
from tests.engine.toy import toy_model
from tests.golden_data import Case, names


@pytest.mark.parametrize("name", names("lr_image.npz"))
def test_released_schedule_is_the_recorded_one(name):
    case = Case("lr_image.npz", name)
    recorded = case.config
    config = OptimConfig(lr=recorded["base_lr"], min_lr=recorded["min_lr"], epochs=recorded["epochs"])
    peak = scaled_lr(config.lr, recorded["batch_size"], recorded["world_size"])
    assert peak == pytest.approx(recorded["scaled_lr"], rel=1e-12)
    rates = [lr_at(epoch, config, peak) for epoch in range(config.epochs)]
    np.testing.assert_allclose(rates, case["lr_used_in_epoch64"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", names("lr_video.npz"))
def test_stepwise_schedule_is_the_recorded_one(name):
    case = Case("lr_video.npz", name)
    recorded = case.config
    config = OptimConfig(
        schedule="iteration",
        lr=recorded["base_lr"],
        min_lr=recorded["min_lr"],
        warmup_lr=recorded["warmup_lr"],
        epochs=recorded["epochs"],
        warmup_epochs=recorded["warmup_epochs"],
    )
    batch = recorded["batch_size"] * recorded["update_freq"] * recorded["num_sample"]
    peak = scaled_lr(config.lr, batch, recorded["world_size"], 256)
    assert peak == pytest.approx(recorded["base_lr"] * recorded["scale"], rel=1e-12)
    steps = recorded["iters_per_epoch"]
    rates = [lr_at(epoch, config, peak, step, steps) for epoch in range(config.epochs) for step in range(steps)]
    np.testing.assert_allclose(rates, case["lr_per_iteration64"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_timms_cosine_and_the_same_one_epoch_late(warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    timm = CosineLRScheduler(optimizer, t_initial=10, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6)
    expected = [timm._get_lr(epoch)[0] for epoch in range(10)]
    settings = {"lr": 1e-3, "min_lr": 1e-5, "epochs": 10, "warmup_epochs": warmup, "warmup_lr": 1e-6}
    textbook = OptimConfig(schedule="cosine", **settings)
    released = OptimConfig(schedule="released", **settings)
    assert [lr_at(e, textbook, 1e-3) for e in range(10)] == pytest.approx(expected, rel=1e-12)
    assert [lr_at(e, released, 1e-3) for e in range(10)] == pytest.approx([expected[0], *expected[:-1]], rel=1e-12)


def test_groups_have_their_own_scale_and_decay():
    model = toy_model()
    groups = [
        {"params": [model[1].weight], "lr_scale": 0.25, "weight_decay": 0.0},
        {"params": [model[1].bias, *model[4].parameters()]},
    ]
    optimizer = build_optimizer(model, OptimConfig(), groups)
    set_lr(optimizer, 0.8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.8]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]


def test_both_heads_of_a_distilled_model_have_the_heads_rate():
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=3)
    optimizer = build_optimizer(model, OptimConfig(head_lr_scale=20.0))
    (head,) = (group for group in optimizer.param_groups if group["lr_scale"] == 20)
    assert {id(p) for p in head["params"]} == {id(p) for part in model.get_classifier() for p in part.parameters()}


def test_adamw_decays_every_parameter():
    model = toy_model()
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, model.parameters()):
        torch.testing.assert_close(new.detach(), old * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"lr": math.nan},
        {"min_lr": -1.0},
        {"min_lr": 1.0},
        {"epochs": 0},
        {"epochs": 3, "warmup_epochs": 3},
        {"warmup_lr": -1e-6},
        {"schedule": "linear"},
        {"weight_decay": -0.1},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
        {"clip_grad": 0.0},
        {"accumulation": 0},
        {"model_ema_decay": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"OptimConfig: {list(wrong)[-1]}=.*; expected"):
        OptimConfig(**wrong)
