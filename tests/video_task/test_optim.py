"""The parameter groups of the video recipe."""

import json

import pytest
import timm
import torch

from rmeeto.engine import build_optimizer
from rmeeto.engine.optim import set_lr
from tests.golden_data import FOLDER
from video_task.models import VideoMamba
from video_task.optim import VideoOptimConfig, parameter_groups


def test_groups_are_the_recorded_ones_in_their_order():
    recorded = json.loads((FOLDER / "video_param_groups.json").read_text())
    with torch.device("meta"):
        model = timm.create_model("videomamba_tiny")
    names = {parameter: name for name, parameter in model.named_parameters()}
    config = VideoOptimConfig(layer_decay=recorded["layer_decay"], weight_decay=recorded["base_weight_decay"])
    ours = {
        group["name"]: {
            "lr_scale": group["lr_scale"],
            "weight_decay": group["weight_decay"],
            "n_params": len(group["params"]),
            "params": [names[parameter] for parameter in group["params"]],
        }
        for group in parameter_groups(model, config)
    }
    assert list(ours.items()) == list(recorded["groups"].items())


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_the_stem_is_slower_and_nothing_is_forgotten(layer_decay):
    model = VideoMamba(16, 8, 16, 3, num_frames=2, num_classes=3)
    model.head.requires_grad_(False)
    config = VideoOptimConfig(layer_decay=layer_decay)
    optimizer = build_optimizer(model, config, parameter_groups(model, config))
    set_lr(optimizer, 0.8)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(p.requires_grad for p in model.parameters())
    assert rates[model.patch_embed.proj.weight] == rates[model.cls_token] == 0.8 * layer_decay**4
    assert rates[model.temporal_pos_embedding] == rates[model.norm_f.weight] == 0.8
