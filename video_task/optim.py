"""The paper's video recipe for the optimizer: rates that change with every step, and a slower stem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rmeeto.engine.optim import SCHEDULES, WARMUP, OptimConfig
from rmeeto.settings import setting

# The rates are for this many clips in an optimizer step, over all processes and micro-batches.
REFERENCE_BATCH = 256
STEM = ("cls_token", "pos_embed", "patch_embed")


@dataclass(frozen=True)
class VideoOptimConfig(OptimConfig):
    """How to train (the defaults are the paper's video recipe).

    `layer_decay` slows the stem alone, to `layer_decay ** (depth + 1)` of the rate: the released code, which the
    published numbers rest on, gives all blocks the full rate.
    """

    lr: float = setting(
        2e-5, "learning rate per 256 clips: times all clips of a step, accumulation included, / 256", within="(0, inf)"
    )
    min_lr: float = setting(
        1e-6, "where the cosine ends (scaled like --lr, unless --schedule says otherwise)", within="[0, inf)"
    )
    warmup_epochs: int = setting(5, "epochs of linear warm-up", within="[0, inf)", smoke=0)
    warmup_lr: float = setting(
        1e-6,
        "where the warm-up starts (scaled like --lr, see --min_lr)",
        within="[0, inf)",
        needs=WARMUP,
    )
    schedule: str = setting(
        "iteration",
        "iteration: step by step; cosine: by epoch; released: the image task's",
        one_of=SCHEDULES,
    )
    weight_decay: float = setting(
        0.1, "of AdamW; not on biases, norms, embeddings and other vectors", within="[0, inf)"
    )
    accumulation: int = setting(
        1,
        "micro-batches averaged in one optimizer step",
        "accumulation_steps",
        "update_freq",
        within="[1, inf)",
    )
    layer_decay: float = setting(
        0.75, "the stem's rate is this to the power of depth + 1; 1: the full rate", within="(0, 1]"
    )


def parameter_groups(model: nn.Module, config: VideoOptimConfig) -> list[dict[str, Any]]:
    """The groups of the video recipe, for `build_optimizer`.

    Args:
        model: a `VideoMamba`.
        config: weight_decay and layer_decay are read.

    Returns:
        Groups "layer_0_decay", "layer_0_no_decay" (the stem) and the same of the last layer's number (all else), in
        the order of their first parameters.
    """
    last, without = model.depth + 1, model.no_weight_decay()
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = 0 if name.startswith(STEM) else last
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in without
        key = f"layer_{layer}_{'decay' if decays else 'no_decay'}"
        group = groups.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "lr_scale": config.layer_decay ** (last - layer),
                "weight_decay": config.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())
