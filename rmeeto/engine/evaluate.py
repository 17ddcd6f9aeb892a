"""Exact accuracy: whole numbers added over all processes, no sample counted twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmeeto.engine.dist import RankError, World
from rmeeto.engine.feed import on_device
from rmeeto.engine.precision import autocast
from rmeeto.engine.progress import LINE_EVERY, Progress
from rmeeto.errors import UserError
from rmeeto.layout import BySamples

Batch = tuple[Tensor, Tensor]


class EvalData(Protocol):
    """What an evaluation needs of a data set.

    One that leaves out samples that it cannot read has `report()` as well: a dict with their numbers in this process,
    "unreadable_train" so far and "unreadable_eval" in the latest evaluation.
    """

    def eval_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """This process's share: (images, (B,) class indices), each sample exactly once over all processes."""


class Data(EvalData, Protocol):
    """A training and an evaluation set.

    A micro-batch is a pure function of seed, epoch and its number in the epoch over all processes (see
    `rmeeto.engine.split`): then a run gives the same with any number of processes, and goes on with another.
    `rmeeto.data.adapter.Loaders` makes one of any two DataLoaders.
    """

    batches_per_epoch: int  # micro-batches, the same on every process

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """(images, targets) of this process's micro-batches start, start + 1, ... of an epoch."""

    def contents(self) -> dict[str, list[Any]]:
        """What the training set is: by class, the number of samples and a digest of their names and sizes.

        A data set may leave this out; then nobody notices that it changes between a stop and a resumption.
        """


class NotFinite(UserError):
    """A model whose outputs are not finite was evaluated."""


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def evaluate(
    model: nn.Module,
    data: EvalData,
    world: World,
    dtype: torch.dtype | None = None,
    title: str = "evaluating",
    after_batch: Callable[[], None] = lambda: None,
    line_every: float = LINE_EVERY,
) -> dict[str, Any]:
    """Top-1 and top-5 accuracy and loss of a model, the same numbers for any number of processes.

    Args:
        model: from images to (B, K) logits, without a DDP wrapper: processes may see unequal numbers of batches.
        data: see `EvalData`.
        dtype: of autocast, or None.
        after_batch: called behind each batch; it may raise, to end the evaluation.
        line_every: seconds between two lines on how far it is, where there is no terminal.

    Returns:
        top1, top5: in percent (top5 is top-K where there are fewer than 5 classes).
        loss: mean cross entropy of the images that could be read.
        count: images, with the unreadable ones, which count as wrong; unreadable: how many those are.

    Raises:
        NotFinite: the outputs are not finite.
        UserError: there is nothing to evaluate.
    """
    shared_out = BySamples(model)  # on a CPU, where other processes hold up every operator that waits for all threads
    counts = torch.zeros(3, dtype=torch.int64, device=world.device)  # top-1, top-5, images
    loss = torch.zeros((), dtype=torch.float64, device=world.device)
    shown = Progress(title, None, shown=world.is_main, line_every=line_every)
    with _evaluating(model), torch.inference_mode(), shown as progress:
        for images, targets in on_device(rank_errors(data.eval_batches(), world), world.device):
            with autocast(world.device, dtype):
                logits = shared_out(images).float()
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
            # filled there: a copy would wait for the GPU
            number = torch.full((), len(targets), device=world.device)
            counts += torch.stack([ranked[:, 0].sum(), ranked.sum(), number])
            loss += F.cross_entropy(logits, targets, reduction="none").double().sum()
            progress.update()
            after_batch()

    missed = counts.new_tensor([unreadable(data, "eval")])
    totals = world.all_reduce(torch.cat([counts, missed])).tolist()
    top1, top5, read, missing = totals
    mean_loss = world.all_reduce(loss).item() / max(read, 1)
    if not read:
        raise UserError(f"nothing to evaluate: no image could be read, {missing} could not.")
    if not math.isfinite(mean_loss):
        half = "" if dtype is None else "amp='off', or "
        raise NotFinite(f"the model's outputs are not finite in evaluation; try {half}other weights.")
    count = read + missing
    return {
        "top1": 100 * top1 / count,
        "top5": 100 * top5 / count,
        "loss": mean_loss,
        "count": count,
        "unreadable": missing,
    }


def unreadable(data: EvalData, which: str) -> int:
    """How many samples this process could not read: of "train" or of the latest "eval"."""
    return data.report()[f"unreadable_{which}"] if hasattr(data, "report") else 0


def rank_errors(batches: Iterable[Any], world: World) -> Iterator[Any]:
    """The batches; where there are several processes, an error in reading them names this one."""
    try:
        yield from batches
    except UserError as error:
        if world.size == 1:
            raise
        raise RankError(f"rank {world.rank}: {error}") from None
