"""The predicted wall time beside the measured one: trainings of 1, 2 and 4 processes on this machine's cores.

`rmeeto.measure.scaling` is given rates and a link that are measured without any of the trainings: the rates of a
process alone, how much slower a step is where as many processes work as the run has (and wait for each other behind
it), and the link of two. All stand still but those whose turn it is: in each round every training does an epoch with
its evaluation, between two pieces of what it is predicted from, and is compared with these alone, so that the
machine's better and worse moments are in both. The bound is on the median of the rounds.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, count
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import torch
import torch.utils.tensorboard  # noqa: F401  (what is imported here need not be after every fork)

from benchmarks.turns import Group
from image_task.flags import parse
from image_task.main import TASK
from rmeeto.engine import DistillLoss, World, build_optimizer, evaluate, start
from rmeeto.engine.loop import Training
from rmeeto.engine.parallel import add_in_order
from rmeeto.measure.scaling import Link, Machines, Prediction, Rates, Work, predict

DENSE = Path(__file__).resolve().parents[1] / "image_task" / "exp_sh" / "digits" / "dense.safetensors"
RUN = (
    f"--data_set digits --device cpu --num_workers 0 --accumulation 1 --num_prune 12 --model_pth {DENSE} --distill "
    "--checkpoint_every 0 --name run"
).split()
SIZES, ROUNDS, BOUND = (1, 2, 4), 13, 0.15
BATCH, STEPS, TIMED = 32, 24, 5  # micro-batches of an epoch where one process has them all, of a piece of its rates
EVALUATED = 360  # digits
PARTS = {
    "step_compute_s": "compute_s",
    "step_load_s": "wait_s",
    "step_reduce_s": "reduce_s",
    "step_update_s": "update_s",
    "evaluation_s": "evaluate_s",
}

Rest, Meet = Callable[[Any], None], Callable[[], Any]


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    """A row for each number of processes: predicted and measured seconds of an epoch and its evaluation."""
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    try:
        with Bench(*((4, max(SIZES), 2) if quick else (BATCH, STEPS, ROUNDS)), cores) as bench:
            predicted, measured = bench.compare()
    finally:
        torch.set_num_threads(threads)
    for size in SIZES:
        parts, seconds = predicted[size], measured[size]
        errors = [ours.total_s / theirs - 1 for ours, theirs in zip(parts, seconds, strict=True)]
        error, quartiles = median(errors), quantiles(errors, n=4, method="inclusive")
        yield {
            "processes": size,
            "cores": cores,
            "measured_s": median(seconds),
            "predicted_s": median(part.total_s for part in parts),
            "error": error,
            "quartiles": [round(one, 3) for one in quartiles[::2]],
            "errors_by_round": [round(one, 3) for one in errors],
            "steps": parts[0].steps,
            **{name: median(getattr(part, field) for part in parts) for name, field in PARTS.items()},
            **({} if quick or abs(error) <= BOUND else {"refused": f"off by more than {BOUND:.0%}"}),
        }


class Bench(ExitStack):
    """The trainings, and the processes that do what they are predicted from.

    Args:
        batch: images of a micro-batch.
        steps: of an epoch where one process has all of its images.
        rounds: to compare in.
        cores: that all of them have.
    """

    def __init__(self, batch: int, steps: int, rounds: int, cores: int) -> None:
        super().__init__()
        self.batch, self.steps, self.rounds, self.cores = batch, steps, rounds, cores
        line = [*RUN, "--batch_size", str(batch), "--epochs", str(rounds + 2)]  # of the last, no round sees the end
        self.crowds = {size: self.enter_context(Group(size, _stepping(line, alone=size == 1))) for size in SIZES}
        (first,) = self.crowds[1].turn()
        self.gradient_bytes = first["gradient_bytes"]
        self.link = self.enter_context(Group(2, _sending(self.gradient_bytes, free_port())))
        self.folders = {size: self.enter_context(tempfile.TemporaryDirectory(prefix="scaling")) for size in SIZES}
        self.trainings = {}
        for size, folder in self.folders.items():
            flags = [*line, "--max_train_batches", str(steps // size), "--output_dir", folder]
            self.trainings[size] = self.enter_context(Group(size, _training(flags, size, free_port())))

    def compare(self) -> tuple[dict[int, list[Prediction]], dict[int, list[float]]]:
        """What an epoch should take in each round, and what it takes, by number of processes."""
        predicted: dict[int, list[Prediction]] = {size: [] for size in SIZES}
        for training in self.trainings.values():
            training.turn()  # the first epoch is slower
        for _ in range(self.rounds):
            for size in SIZES:
                pieces = self.crowds[size].turn()
                self.trainings[size].turn()
                pieces += self.crowds[size].turn()
                step = mean(piece.pop("step_s") for piece in pieces)
                if size == 1:
                    alone = {name: mean(piece[name] for piece in pieces) for name in pieces[0]}
                    alone_step, link = step, Link(*self.link.turn()[0])
                predicted[size].append(self.predict(size, alone, step / alone_step, link))
        return predicted, {size: self.seconds(size) for size in SIZES}

    def predict(self, size: int, alone: dict[str, float], slower: float, link: Link) -> Prediction:
        """An epoch of so many processes.

        Args:
            alone: seconds of what a process does, by the names of `Rates`.
            slower: as many times as long a step takes where so many processes work.
            link: of two of them.
        """
        turns = max(1.0, size / self.cores)  # the model counts these
        seconds = {name: value for name, value in alone.items() if name.endswith("_s")}
        work = Work(self.steps * self.batch, EVALUATED, 1, self.gradient_bytes)
        machine = Machines(1, size, self.cores, link, link, on_cores=True, gathers=True)
        return predict(Rates(self.batch, **seconds, busy=slower / turns), work, machine)

    def seconds(self, size: int) -> list[float]:
        """Of the epochs of a training and their evaluations, as its log has them, but for the first."""
        took: dict[int, float] = {}
        for text in (Path(self.folders[size]) / "run" / "log.jsonl").read_text().splitlines():
            line = json.loads(text)
            if line["event"] in ("train", "eval"):
                took[line["epoch"]] = took.get(line["epoch"], 0.0) + line["process"]["seconds"]
        return [took[epoch] for epoch in range(2, self.rounds + 2)]


def _stepping(line: list[str], alone: bool) -> Callable[[int, Rest, Meet], None]:
    """Processes that do a training's steps, each its own: a piece is the mean seconds of what these are made of."""

    def work(_: int, rest: Rest, meet: Meet) -> None:
        config, _, _ = parse(line)
        world = World(torch.device("cpu"))
        parts = TASK.build(config, world)
        criterion = DistillLoss(parts.teacher, config.distill.distill_weight)
        optimizer = build_optimizer(parts.model, config.optim)
        parts.model.train()
        batches = chain.from_iterable(parts.data.train_batches(epoch) for epoch in count())

        def step() -> list[float]:
            marks = [time.perf_counter()]
            images, targets = next(batches)
            marks.append(time.perf_counter())
            loss = criterion(images, parts.model(images), targets)["loss"]
            marks.append(time.perf_counter())
            loss.backward()
            marks.append(time.perf_counter())
            optimizer.step()
            optimizer.zero_grad()
            marks.append(time.perf_counter())
            meet()
            return [after - before for before, after in zip(marks, [*marks[1:], time.perf_counter()])]

        step(), step()  # the first ones are slower
        rest(None)
        while True:
            load, forward, backward, update, waiting = map(mean, zip(*(step() for _ in range(TIMED))))
            found = {"step_s": load + forward + backward + update + waiting}
            if alone:
                began = time.perf_counter()
                evaluate(parts.model, parts.data, world)
                found |= {
                    "load_s": load / config.data.batch_size,
                    "compute_s": forward + backward,
                    "backward_s": backward,
                    "update_s": update,
                    "evaluate_s": (time.perf_counter() - began) / parts.data.num_eval,
                    "gradient_bytes": 4.0 * sum(p.numel() for p in parts.model.parameters()),
                }
            rest(found)

    return work


def _sending(gradient_bytes: float, port: int) -> Callable[[int, Rest, Meet], None]:
    """Two processes: a piece is bandwidth and latency of the collective that adds gradients, and of a small one."""

    def work(rank: int, rest: Rest, _: Meet) -> None:
        _join(rank, 2, port)
        with start("cpu") as world:
            bucket = _Bucket(torch.zeros(int(gradient_bytes / 4)))
            small, large = [], []
            while True:
                rest((gradient_bytes / max(mean(large) - mean(small), 1e-6), mean(small) / 2) if large else None)
                small, large = [], []
                for _ in range(20):
                    began = time.perf_counter()
                    world.all_reduce(torch.zeros(2))
                    small.append(time.perf_counter() - began)
                    began = time.perf_counter()
                    add_in_order(2, bucket).wait()
                    large.append(time.perf_counter() - began)

    return work


class _Bucket:
    """As much of a bucket of gradients as the hook asks for."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers = numbers

    def buffer(self) -> torch.Tensor:
        return self._numbers


def _training(line: list[str], size: int, port: int) -> Callable[[int, Rest, Meet], None]:
    """A training by its command line: a piece is an epoch with its evaluation and its checkpoint."""

    def work(rank: int, rest: Rest, _: Meet) -> None:
        epoch = Training.train_epoch

        def train_epoch(training: Training) -> None:
            rest(None)
            epoch(training)

        Training.train_epoch = train_epoch  # type: ignore[method-assign]  # of this process alone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _join(rank, size, port)
        raise RuntimeError(f"exit code {TASK.main(line)}")

    return work


def _join(rank: int, size: int, port: int) -> None:
    """Be a process of so many, as a launcher would have it."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in names.items()}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
