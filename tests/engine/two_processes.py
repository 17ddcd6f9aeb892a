"""What `test_dist.py` runs in several processes: trainings and agreements, written to a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from rmeeto.engine import DistillLoss, OptimConfig, World, evaluate, fit, start
from rmeeto.errors import UserError
from tests.engine.test_loop import Cut, cut_at
from tests.engine.toy import ToyData, ToyMerging, toy_folder, toy_model, toy_run


def train(path: Path, world: World, accumulation: int, data=None, dropout=0.0, reduce="fp32", **run) -> torch.nn.Module:
    """The training that one and two processes do alike, seen from one of them."""
    settings = {"clip_grad": 1.0, "model_ema": True, "reduce": reduce}
    optim = OptimConfig(lr=5e-2, epochs=2, accumulation=accumulation, **settings)
    model, criterion = toy_model(dropout), DistillLoss(toy_model(seed=3))
    with toy_folder(path, world) as folder:
        data = data or ToyData(world.rank, world.size)
        result = fit(model, data, criterion, optim, toy_run(path, **run), world, folder)
        folder.finish(result)
    return model


def failure(function) -> str:
    try:
        function()
    except UserError as error:
        return str(error)
    raise AssertionError("no error")


def main(out: Path) -> dict:
    with start("cpu") as world:
        rank, data = world.rank, ToyData(world.rank, world.size)
        train(out / "plain", world, accumulation=1)
        train(out / "accumulated", world, accumulation=2)

        train(out / "whole", world, accumulation=1, dropout=0.3)
        try:
            cut = cut_at(data, 1, 3)
            train(out / "resumed", world, accumulation=1, data=cut, dropout=0.3, checkpoint_every=2)
        except Cut:
            torch.manual_seed(99)
        train(out / "resumed", world, accumulation=1, dropout=0.3, checkpoint_every=2, resume=True)

        elastic = ToyMerging()
        with toy_folder(out / "elastic", world) as folder:
            optim = OptimConfig(lr=5e-2, epochs=1, accumulation=2, elastic_r=(0, 5, 11, 16))
            fit(elastic, data, DistillLoss(), optim, toy_run(out / "elastic"), world, folder)

        def fail(at: int) -> int:
            if rank == at:
                raise UserError(f"raised at {at}")
            return rank

        return {
            "elastic": [elastic.seen["train"], elastic.head.weight.tolist()],
            "evaluation": evaluate(toy_model(), ToyData(rank, world.size, unreadable=[3, 6]), world),
            "gathered": world.gather(f"from {rank}"),
            "on_main": world.on_main(lambda: f"from {rank}"),
            "failed_on_main": failure(lambda: world.on_main(lambda: fail(0))),
            "together": world.on_every(lambda: rank),
            "failed_on_0": failure(lambda: world.on_every(lambda: fail(0))),
            "failed_on_1": failure(lambda: world.on_every(lambda: fail(1))),
            "not_finite": failure(
                lambda: train(out / "bad", world, 1, ToyData(rank, world.size, bad=[7]), checkpoint_every=1)
            ),
        }
