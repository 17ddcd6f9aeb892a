"""The optimizer and its learning rate: AdamW, and a cosine that is a pure function of the position."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.optim import AdamW, Optimizer

from rmeeto.settings import Need, Settings, refuse, setting

SCHEDULES = ("released", "cosine", "iteration")
WARMUP = Need(lambda config: config.optim.warmup_epochs > 0, "optim.warmup_epochs is 0")
AVERAGED = Need(lambda config: config.optim.model_ema, "optim.model_ema is off")
MERGED = Need(
    lambda config: config.merge is not None and config.merge.is_active,
    "the model does not merge (merge.r is what it is evaluated at)",
    fatal=True,
)
ONE_R = Need(
    lambda config: type(config.merge.r) is int,
    "it takes the place of one whole number r, and merge.r is a share or differs from block to block",
    fatal=True,
)


@dataclass(frozen=True)
class OptimConfig(Settings):
    """How to train (the defaults are the paper's image recipe).

    `schedule="released"`, the default because the published numbers rest on it, passes the *finished* epoch to
    the cosine: epochs 0 and 1 both run at the full rate and the last one is further from `min_lr`. `"cosine"`
    takes the value of the epoch that is being trained. `"iteration"`, the paper's video recipe, changes the rate
    with every optimizer step, and scales all rates for the batch.
    """

    only: ClassVar[str] = "training"

    lr: float = setting(
        2e-5,
        "learning rate per 512 images: times batch size x processes / 512; accumulation does not count",
        within="(0, inf)",
    )
    min_lr: float = setting(1e-6, "where the cosine ends (not scaled)", within="[0, inf)")
    epochs: int = setting(30, "passes over the training set", "epoch", within="[1, inf)", smoke=1)
    warmup_epochs: int = setting(0, "epochs of linear warm-up", within="[0, inf)", smoke=0)
    warmup_lr: float = setting(1e-6, "where the warm-up starts (not scaled)", within="[0, inf)", needs=WARMUP)
    schedule: str = setting(
        "released",
        "released: epochs 0 and 1 both at the full rate; cosine: the textbook one; iteration: step by step",
        one_of=SCHEDULES,
    )
    weight_decay: float = setting(0.05, "of AdamW, on all parameters", within="[0, inf)")
    betas: tuple[float, float] = setting((0.9, 0.999), "of AdamW", "opt_betas", within="[0, 1)")
    eps: float = setting(1e-8, "of AdamW", "opt_eps", within="(0, inf)")
    clip_grad: float | None = setting(None, "largest norm of the gradient; none: no clipping", within="(0, inf)")
    accumulation: int = setting(
        2, "micro-batches averaged in one optimizer step", "accumulation_steps", within="[1, inf)"
    )
    processes: int | None = setting(
        None,
        "processes that accumulation and learning rate are meant for, whose result any number that divides a step "
        "then gives; none: those that run",
        within="[1, 1000000]",
    )
    reduce: str = setting(
        "fp32",
        "what gradients travel as between processes: fp32, or bf16 for half the bytes",
        one_of=("fp32", "bf16"),
    )
    compile_blocks: bool = setting(
        False,
        "compile each block with torch.compile: minutes at the start, then faster steps; evaluation is not compiled",
    )
    cuda_graph: bool = setting(
        False,
        "replay each step's passes as a CUDA graph: faster where launching them takes longer than running them, on one "
        "GPU, with the same numbers",
    )
    model_ema: bool = setting(False, "keep and evaluate an exponential moving average of the weights as well")
    model_ema_decay: float = setting(0.99996, "of that average, per optimizer step", within="[0, 1)", needs=AVERAGED)
    head_lr_scale: float = setting(
        1.0, "the head's rate as a multiple of the others': 20, say, for a new one", within="(0, inf)"
    )
    elastic_r: tuple[int, ...] | None = setting(
        None,
        "one set of weights for many r, such as 0,5,11,16: each step at largest, smallest and one drawn between",
        within="[0, inf)",
        needs=(MERGED, ONE_R),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elastic_r is not None and not 1 < len(self.elastic_r) == len(set(self.elastic_r)):
            refuse(self, "elastic_r", "two or more different numbers of tokens, such as 0,5,11,16")
        if self.min_lr > self.lr:
            refuse(self, "min_lr", f"a rate between 0 and lr={self.lr}")
        if self.warmup_epochs >= self.epochs:
            refuse(self, "warmup_epochs", f"fewer than epochs={self.epochs}")


def scaled_lr(lr: float, batch_size: int, world_size: int, reference: int = 512) -> float:
    """The rate for `batch_size` samples on each of `world_size` processes."""
    return lr * batch_size * world_size / reference


def lr_at(epoch: int, config: OptimConfig, peak: float, step: int = 0, num_steps: int = 1) -> float:
    """The learning rate of an epoch (from 0), or of one of its optimizer steps.

    The cosine of the epoch-wise schedules spans all epochs, warm-up included, as in timm and DeiT; it follows the
    formula even where a small batch has scaled the peak below `min_lr`. The step-wise one reaches the peak with the
    last step of the warm-up and spans the steps behind it.

    Args:
        peak: the full rate, `config.lr` scaled for the batch.
        step: of the epoch (from 0), which only `schedule="iteration"` reads.
        num_steps: of an epoch.
    """
    if config.schedule == "iteration":
        return _lr_at_step(epoch * num_steps + step, config, peak, num_steps)
    position = max(epoch - 1, 0) if config.schedule == "released" else epoch
    if position < config.warmup_epochs:
        return config.warmup_lr + position * (peak - config.warmup_lr) / config.warmup_epochs
    return _cosine(position / config.epochs, peak, config.min_lr)


def _lr_at_step(step: int, config: OptimConfig, peak: float, num_steps: int) -> float:
    scale = peak / config.lr
    warmup, total = config.warmup_epochs * num_steps, config.epochs * num_steps
    if step < warmup:
        start = config.warmup_lr * scale
        return start + (peak - start) * step / max(warmup - 1, 1)
    return _cosine((step - warmup) / (total - warmup), peak, config.min_lr * scale)


def _cosine(share: float, peak: float, lowest: float) -> float:
    return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * share))


def build_optimizer(model: nn.Module, config: OptimConfig, groups: Iterable[dict[str, Any]] | None = None) -> Optimizer:
    """AdamW over the model's trainable parameters.

    Args:
        groups: instead of one group of everything: dicts with "params" and, where they differ, "weight_decay"
            and "lr_scale" (a factor on the schedule's rate, for layer decay).
    """
    groups = [{"params": [p for p in model.parameters() if p.requires_grad]}] if groups is None else groups
    if config.head_lr_scale != 1:
        groups = _with_head(model, groups, config.head_lr_scale)
    groups = [{"lr_scale": 1.0, **group} for group in groups]
    # The rate is set before every step; fused: one call for all parameters instead of some ten for each.
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True)


def _with_head(model: nn.Module, groups: Iterable[dict[str, Any]], scale: float) -> Iterator[dict[str, Any]]:
    """The groups, with the head's parameters in groups of their own."""
    found = model.get_classifier()  # a distilled model has two
    heads = found if isinstance(found, tuple) else (found,)
    head = {id(parameter) for part in heads for parameter in part.parameters()}
    for group in groups:
        for at_head, factor in ((False, 1.0), (True, scale)):
            params = [p for p in group["params"] if (id(p) in head) is at_head]
            if params:
                yield {**group, "params": params, "lr_scale": group.get("lr_scale", 1.0) * factor}


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group its rate: `lr` times the group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
