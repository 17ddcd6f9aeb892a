"""The predicted wall time beside the measured one: trainings of 1, 2 and 4 processes on this machine's cores.

What `rmeeto.measure.scaling` is given are the rates of one process, alone and with every core busy, and a link, all
measured here without any of the trainings; what it says of them is compared with the seconds of their logs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
import torch.utils.tensorboard  # noqa: F401  (what is imported here need not be after every fork)

from benchmarks.faults import run_as, wait
from image_task.flags import parse
from image_task.main import TASK
from rmeeto.engine import DistillLoss, World, build_optimizer, evaluate, start
from rmeeto.engine.parallel import add_in_order
from rmeeto.measure.scaling import Link, Machines, Rates, Work, predict

DENSE = Path(__file__).resolve().parents[1] / "image_task" / "exp_sh" / "digits" / "dense.safetensors"
RUN = (
    f"--data_set digits --device cpu --num_workers 0 --accumulation 1 --num_prune 12 --model_pth {DENSE} --distill "
    "--checkpoint_every 0 --name run"
).split()
SIZES, ROUNDS, TIMED, BOUND = (1, 2, 4), 7, 12, 0.15
SAMPLES, EVALUATED = 1280, 360  # of the digits: an epoch of repeated augmentation, and the evaluation

_fork = multiprocessing.get_context("fork")


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    """A row for each number of processes: predicted and measured seconds of the epochs and their evaluations."""
    threads, batch, epochs = torch.get_num_threads(), 4 if quick else 32, 1 if quick else 2
    torch.set_num_threads(1)
    line = [*RUN, "--batch_size", str(batch), "--epochs", str(epochs)]
    cores = len(os.sched_getaffinity(0))
    try:
        found: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
        parts = {}
        for _ in range(1 if quick else ROUNDS):
            rates, link, gradient = calibrate(line, batch, cores, 2 if quick else TIMED)
            for size in SIZES:
                work = Work(SAMPLES, EVALUATED, epochs, gradient)
                machine = Machines(1, size, cores, link, link, on_cores=True, gathers=True)
                parts[size] = predict(rates, work, machine)
                found[size].append((parts[size].total_s, measured(line, size)))
    finally:
        torch.set_num_threads(threads)
    for size, pairs in found.items():
        predicted, seconds = (median(values) for values in zip(*pairs))
        error, part = predicted / seconds - 1, parts[size]
        yield {
            "processes": size,
            "cores": cores,
            "measured_s": seconds,
            "predicted_s": predicted,
            "error": error,
            "errors_by_round": [round(ours / theirs - 1, 3) for ours, theirs in pairs],
            "steps": part.steps,
            "step_compute_s": part.compute_s,
            "step_load_s": part.wait_s,
            "step_reduce_s": part.reduce_s,
            "step_update_s": part.update_s,
            "evaluation_s": part.evaluate_s,
            **({} if quick or abs(error) <= BOUND else {"refused": f"off by more than {BOUND:.0%}"}),
        }


def calibrate(line: list[str], batch: int, cores: int, timed: int) -> tuple[Rates, Link, float]:
    """Rates of a process, the link of two, and the bytes of a gradient."""
    (alone,) = together(1, lambda _, meet: process(line, timed, meet))
    crowd = together(cores, lambda _, meet: process(line, timed, meet))
    step = [one["load_s"] * batch + one["compute_s"] + one["update_s"] for one in (alone, *crowd)]
    busy = max(1.0, mean(step[1:]) / step[0])
    rates = {name: value for name, value in alone.items() if name.endswith("_s")}
    port = free_port()
    link = together(2, lambda rank, meet: linked(rank, port, alone["gradient_bytes"], meet))[0]
    return Rates(batch, **rates, busy=busy), Link(*link), alone["gradient_bytes"]


def process(line: list[str], timed: int, meet: Callable[[], Any]) -> dict[str, float]:
    """Seconds of what a training process does, on average over micro-batches of the run's own data."""
    config, _, _ = parse(line)
    world = World(torch.device("cpu"))
    parts = TASK.build(config, world)
    criterion = DistillLoss(parts.teacher, config.distill.distill_weight)
    optimizer = build_optimizer(parts.model, config.optim)
    parts.model.train()
    batches, took = parts.data.train_batches(0), []
    for number in range(timed + 2):
        if number == 2:  # the first ones are slower
            meet()
        marks = [time.perf_counter()]

        def mark(marks: list[float] = marks) -> None:
            marks.append(time.perf_counter())

        images, targets = next(batches)
        mark()
        loss = criterion(images, parts.model(images), targets)["loss"]
        mark()
        loss.backward()
        mark()
        optimizer.step()
        optimizer.zero_grad()
        mark()
        took.append(np.diff(marks))
    load, forward, backward, update = np.mean(took[2:], axis=0)
    meet()
    began = time.perf_counter()
    evaluate(parts.model, parts.data, world)
    return {
        "load_s": float(load) / config.data.batch_size,
        "compute_s": float(forward + backward),
        "backward_s": float(backward),
        "update_s": float(update),
        "evaluate_s": (time.perf_counter() - began) / parts.data.num_eval,
        "gradient_bytes": 4.0 * sum(p.numel() for p in parts.model.parameters()),
    }


def linked(rank: int, port: int, gradient_bytes: float, meet: Callable[[], Any]) -> tuple[float, float]:
    """Bandwidth and latency of two processes, of the collective that adds gradients and of a small one."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    with start("cpu") as world:
        bucket = _Bucket(torch.zeros(int(gradient_bytes / 4)))
        small, large = [], []
        for _ in range(30):
            began = time.perf_counter()
            world.all_reduce(torch.zeros(2))
            small.append(time.perf_counter() - began)
            began = time.perf_counter()
            add_in_order(2, bucket).wait()
            large.append(time.perf_counter() - began)
    message, gather = mean(small[5:]), mean(large[5:])
    return gradient_bytes / max(gather - message, 1e-6), message / 2


class _Bucket:
    """As much of a bucket of gradients as the hook asks for."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers = numbers

    def buffer(self) -> torch.Tensor:
        return self._numbers


def together(count: int, work: Callable[[int, Callable[[], Any]], Any]) -> list[Any]:
    """What `work(rank, meet)` returns in each of so many processes; `meet` waits for all of them."""
    barrier, queue = _fork.Barrier(count), _fork.SimpleQueue()

    def run(rank: int) -> None:
        queue.put((rank, work(rank, lambda: barrier.wait(120))))

    processes = [_fork.Process(target=run, args=(rank,)) for rank in range(count)]
    for one in processes:
        one.start()
    for one in processes:
        one.join()
    assert all(one.exitcode == 0 for one in processes)
    return [value for _, value in sorted((queue.get() for _ in processes), key=lambda item: item[0])]


def measured(line: list[str], size: int) -> float:
    """Seconds of the epochs and evaluations of a training in `size` processes."""
    with tempfile.TemporaryDirectory(prefix="scaling") as folder:
        port, said, pids = free_port(), Path(folder) / "said.txt", []
        said.touch()
        for rank in range(size):
            pid = os.fork()
            if not pid:
                run_as(rank, size, port, [*line, "--output_dir", folder], said)
            pids.append(pid)
        assert set(wait(pids).values()) == {0}, said.read_text()
        log = (Path(folder) / "run" / "log.jsonl").read_text().splitlines()
    lines = [json.loads(text) for text in log]
    return sum(line["process"]["seconds"] for line in lines if line["event"] in ("train", "eval"))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
