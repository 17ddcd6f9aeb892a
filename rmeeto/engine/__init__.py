"""The re-training engine: it takes any model from images to logits and any data set with the interface of `Data`."""

from rmeeto.engine.dist import World, start
from rmeeto.engine.distill import DistillConfig, DistillLoss
from rmeeto.engine.evaluate import Data, EvalData, evaluate
from rmeeto.engine.loop import fit
from rmeeto.engine.optim import OptimConfig, build_optimizer, lr_at, scaled_lr
from rmeeto.engine.record import RunConfig, RunFolder

__all__ = [
    "Data",
    "DistillConfig",
    "DistillLoss",
    "EvalData",
    "OptimConfig",
    "RunConfig",
    "RunFolder",
    "World",
    "build_optimizer",
    "evaluate",
    "fit",
    "lr_at",
    "scaled_lr",
    "start",
]
