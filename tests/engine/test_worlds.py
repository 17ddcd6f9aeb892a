"""The measures on worlds: two machines are one, and a run that goes on with other processes sees every sample once."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
import torch.utils.tensorboard  # noqa: F401  (so that no fork has to)
from torch import nn

from image_task.config import DataConfig
from image_task.data import build_data
from rmeeto.engine import DistillLoss, OptimConfig, World, checkpoint, fit, start
from tests import forked
from tests.engine.test_dist import weights
from tests.engine.test_loop import Cut, same
from tests.engine.toy import toy_folder, toy_run
from tests.recipes import VARIABLES

ROOT = Path(__file__).resolve().parents[2]
STEP, STEPS, BATCH = 12, 2, 4  # micro-batches, which 4, 2 and 3 processes share; steps of an epoch; images


class Watched(DistillLoss):
    """The loss, which notes what it sees; the power fails before step `cut`, counted from the start of the run."""

    def __init__(self, accumulation: int, first: int, cut: int | None) -> None:
        super().__init__()
        self.seen: list[tuple[int, int, list[int]]] = []
        self.accumulation, self.first, self.cut = accumulation, first, cut

    def place(self, epoch, number, images):
        step = self.first + len(self.seen) // self.accumulation
        if step == self.cut:
            raise Cut
        self.at = epoch, number

    def __call__(self, images, logits, targets):
        samples = [zlib.crc32(image.numpy().tobytes()) for image in images]
        self.seen.append((*self.at, samples))
        return super().__call__(images, logits, targets)


def train(path, world: World, first: int = 0, cut: int | None = None, **run) -> list:
    """Two epochs of the digits, augmented, with drop-out; what this process sees of them."""
    accumulation = STEP // world.size
    config = DataConfig(
        batch_size=BATCH,
        repeated_aug=False,
        mixup=0.0,
        cutmix=0.0,
        num_workers=0,
        max_eval_batches=1,
        max_train_batches=STEPS * accumulation,
    )
    data = build_data(config, img_size=8, rank=world.rank, world_size=world.size, seed=0, accumulation=accumulation)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(192, 10))
    criterion = Watched(accumulation, first, cut)
    optim = OptimConfig(lr=1e-2, epochs=2, accumulation=accumulation)
    with toy_folder(path, world) as folder:
        try:
            fit(model, data, criterion, optim, toy_run(path, checkpoint_every=1, **run), world, folder)
        except Cut:
            assert cut is not None
    return criterion.seen


def test_4_then_2_then_3_processes_see_every_sample_once(tmp_path):
    """The first is cut before step 1, the second before step 3, which is in the second epoch."""

    def part(size, **settings):
        def work():
            with start("cpu") as world:
                return train(tmp_path / "parts", world, **settings)

        return [batch for seen in forked.run(size, work) for batch in seen]

    parts = part(4, cut=1) + part(2, first=1, cut=3, resume=True) + part(3, first=3, resume=True)
    whole = train(tmp_path / "whole", World(torch.device("cpu")))
    assert sorted(parts) == whole, "each micro-batch is what it is, and none is missing or there twice"
    for epoch in (0, 1):
        samples = [sample for at, _, batch in parts if at == epoch for sample in batch]
        assert len(samples) == len(set(samples)) == STEPS * STEP * BATCH
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert ours["position"] == theirs["position"] | {"batch": ours["position"]["batch"]}
    for name, value in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], value, rtol=1e-4, atol=1e-6)


RECIPE = f"""set -euo pipefail
source {ROOT}/exp_sh/launch.sh
run worlds --name run --data_set digits --input_size 8 --num_prune 2 --device cpu --num_workers 0 --batch_size 4 \\
    --accumulation 2 --max_train_batches 8 --max_eval_batches 1 --epochs 2 --lr 1e-2 --drop_path 0.3 --model_ema
"""


@pytest.mark.slow
def test_two_machines_of_two_processes_reach_the_parameters_of_one_of_four(tmp_path):
    """Two launchers on this machine are two machines; to the last bit, for the world is of one size."""
    (tmp_path / "recipe.sh").write_text(RECIPE)
    port = forked.free_port()
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    clean |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}

    def machine(runs: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(tmp_path / "recipe.sh")],
            env={**clean, "RUNS": str(tmp_path / runs), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    two = {"NNODES": "2", "NPROC": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    machines = [machine("two", NODE_RANK=str(rank), **two) for rank in (0, 1)]
    said = [process.communicate(timeout=500)[0] for process in machines]
    assert [process.returncode for process in machines] == [0, 0], said
    one = machine("one", NPROC="4")
    assert (one.communicate(timeout=500)[0], one.returncode)[1] == 0
    ours, theirs = (checkpoint.load(tmp_path / name / "worlds" / "run" / "last.pt") for name in ("two", "one"))
    assert "4 x cpu" in said[0] and "4 x cpu" not in said[1]
    assert ours["position"]["step"] == 8
    assert all(same(ours[name], theirs[name]) for name in ("model", "model_ema", "optimizer", "accuracy"))
