"""How long a training takes on machines that are not there: measured rates of one process, stated links, arithmetic.

What the model has: steps are compute, then the part of the all-reduce that the backward pass does not hide; loading
runs beside the compute or in front of it; processes beyond the cores of a machine take turns; evaluation is shared; a
start costs what it costs. What it has not: machines of unequal speed, failures, a file system or network that others
use, the time of checkpoints, caches that many processes share (but for `busy`, which is measured).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rmeeto.errors import UserError


@dataclass(frozen=True)
class Rates:
    """What one process does, measured while nothing else runs.

    Args:
        batch: samples of a micro-batch.
        compute_s: of a micro-batch: both forward passes and the backward pass.
        backward_s: of these, those of the backward pass.
        update_s: of an optimizer step.
        load_s: core-seconds to load and augment a sample.
        evaluate_s: of a sample.
        busy: how many times as long all of this takes where every core (or GPU) of the machine works.
        start_s: from the command to the first step.
    """

    batch: int
    compute_s: float
    backward_s: float = 0.0
    update_s: float = 0.0
    load_s: float = 0.0
    evaluate_s: float = 0.0
    busy: float = 1.0
    start_s: float = 0.0


@dataclass(frozen=True)
class Link:
    """What processes are connected by.

    Args:
        bandwidth: bytes a second that a process can send to another while it receives as many.
        latency: seconds of a message.
    """

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Machines:
    """Machines of a kind.

    Args:
        count: of them.
        processes: on each.
        cores: of each that a process or a loader can have for itself.
        within, between: links of processes on one machine, and of a machine's processes to those of others.
        on_cores: whether the processes compute on these cores; else each has a GPU.
        workers: loader processes of each process; 0: it loads for itself, before it computes.
        gathers: whether gradients are gathered and added in order, as on CPUs, and not reduced in a ring.
        overlap: share of the backward pass that can hide the all-reduce.
    """

    count: int
    processes: int
    cores: int
    within: Link
    between: Link
    on_cores: bool = False
    workers: int = 0
    gathers: bool = False
    overlap: float = 0.0

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.count * self.processes


@dataclass(frozen=True)
class Work:
    """A training.

    Args:
        samples, evaluated: of an epoch, and of the evaluation behind it.
        epochs: of the training.
        gradient_bytes: that are reduced in a step.
        accumulation: micro-batches of a process in a step.
        messages: small collectives of a step beside the gradients.
    """

    samples: int
    evaluated: int
    epochs: int
    gradient_bytes: float
    accumulation: int = 1
    messages: int = 2


@dataclass(frozen=True)
class Prediction:
    """Seconds of a training, and of a step what they are spent on.

    Attributes:
        steps: of an epoch.
        compute_s, wait_s, reduce_s, update_s: of a step: computing, waiting for data, waiting for gradients, updating.
        evaluate_s: of one evaluation.
        total_s: of the whole training, the start among them.
    """

    steps: int
    compute_s: float
    wait_s: float
    reduce_s: float
    update_s: float
    evaluate_s: float
    total_s: float

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.compute_s + self.wait_s + self.reduce_s + self.update_s


BUCKET = 25 * 2**20  # bytes that DistributedDataParallel reduces at once


def predict(rates: Rates, work: Work, machines: Machines) -> Prediction:
    """The wall time of a training on machines.

    Raises:
        UserError: there are fewer samples than a step has.
    """
    step_samples = machines.size * work.accumulation * rates.batch
    steps = work.samples // step_samples
    if not steps:
        raise UserError(
            f"predict: a step of {step_samples} samples is more than the {work.samples} of an epoch; give fewer "
            "machines"
        )
    slower = slowdown(rates, machines)
    compute, update = slower * rates.compute_s, slower * rates.update_s
    loading = loading_s(rates, machines, slower)
    if machines.workers:
        wait = max(0.0, loading - compute)
    else:
        wait = loading
    hidden = machines.overlap * slower * rates.backward_s
    reduction = reduce_s(work.gradient_bytes, machines)
    buckets = max(1, math.ceil(work.gradient_bytes / BUCKET))
    exposed = max(reduction / buckets, reduction - hidden) if machines.size > 1 else 0.0
    exposed += work.messages * message_s(machines)
    per_step = work.accumulation * (compute + wait) + update + exposed
    evaluation = slower * math.ceil(work.evaluated / machines.size) * rates.evaluate_s
    return Prediction(
        steps,
        work.accumulation * compute,
        work.accumulation * wait,
        exposed,
        update,
        evaluation,
        rates.start_s + work.epochs * (steps * per_step + evaluation),
    )


def slowdown(rates: Rates, machines: Machines) -> float:
    """How many times as long a process takes as it does alone on its machine."""
    if not machines.on_cores:
        return rates.busy if machines.processes > 1 else 1.0
    share = min(1.0, (machines.processes - 1) / max(1, machines.cores - 1))  # of the way from alone to all busy
    turns = max(1.0, machines.processes / machines.cores)
    return turns * (1 + share * (rates.busy - 1))


def loading_s(rates: Rates, machines: Machines, slower: float) -> float:
    """Seconds until the data of a micro-batch are there."""
    if not machines.workers:
        return slower * rates.batch * rates.load_s
    cores = min(machines.workers, machines.cores / machines.processes)
    return rates.batch * rates.load_s / cores


def reduce_s(gradient_bytes: float, machines: Machines) -> float:
    """Seconds that the gradients travel.

    A ring moves each byte twice past every process, as fast as its slowest link, and each bucket pays the latencies of
    a tree. Gathering brings each process all that the others have, and takes turns where cores do.
    """
    size = machines.size
    if size == 1:
        return 0.0
    link = machines.within if machines.count == 1 else machines.between
    if machines.gathers:
        turns = max(1.0, machines.processes / machines.cores) if machines.on_cores else 1.0
        return turns * (size - 1) * (gradient_bytes / link.bandwidth + link.latency)
    slowest = min(machines.within.bandwidth, link.bandwidth)
    buckets = max(1, math.ceil(gradient_bytes / BUCKET))
    return 2 * (size - 1) / size * gradient_bytes / slowest + buckets * message_s(machines)


def message_s(machines: Machines) -> float:
    """Seconds of a collective that moves next to nothing: there and back in a tree over all processes."""
    within = math.ceil(math.log2(machines.processes)) * machines.within.latency
    between = math.ceil(math.log2(machines.count)) * machines.between.latency
    turns = max(1.0, machines.processes / machines.cores) if machines.on_cores else 1.0
    return 2 * turns * (within + between)
