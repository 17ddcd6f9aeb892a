"""What data sets share: loading batches by their number, and an account of what could not be read."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from rmeeto.errors import UserError, shown

NOTICES = (signal.SIGTERM, signal.SIGUSR1)  # a scheduler's, to all processes of a job

logger = logging.getLogger(__name__)


def load_batches(
    batches: Dataset, numbers: range, *, num_workers: int, pin_memory: bool, prefetch: int | None = None
) -> Iterator[Any]:
    """The batches of these numbers in this order, made by worker processes; global generators stay untouched.

    Args:
        batches: a batch for every number.
        numbers: which ones.
        num_workers: processes; 0 makes the batches here.
        pin_memory: where there is a GPU.
        prefetch: batches that every worker makes ahead; None for torch's choice.

    Raises:
        UserError: a worker was lost, as to a full shared memory.
    """
    num_workers = min(num_workers, len(numbers))
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        prefetch_factor=prefetch if num_workers else None,
        generator=torch.Generator(),  # the loader would otherwise draw from torch's global one
        worker_init_fn=_outlive_notices,
    )
    try:
        yield from loader
    except (RuntimeError, OSError, EOFError) as error:
        reason = (str(error) or repr(error)).partition("\n")[0]
        lost = not isinstance(error, RuntimeError) or reason.startswith("DataLoader worker (pid")
        if not num_workers or not lost or reason.startswith("Caught"):  # an error in making a batch
            raise
        raise UserError(
            f"a process that loads data is gone ({reason}). It may have run out of memory, or of shared memory, "
            "where batches wait (/dev/shm: Docker's --shm-size); give fewer num_workers (0 needs none) or a smaller "
            "batch_size, and go on with run.resume."
        ) from error


def _outlive_notices(worker: int) -> None:
    """Let the process that trains answer a scheduler's notice: it saves, which needs this one, and then ends it."""
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while (notice := signal.sigwaitinfo(NOTICES)).si_signo != signal.SIGTERM or notice.si_pid != parent:
        pass
    os._exit(0)


@dataclass(frozen=True)
class Unreadable:
    """A sample that could not be decoded."""

    index: int
    name: str
    reason: str


@dataclass
class Unread:
    """The samples that one process could not read: each named once, the distinct ones of a training counted.

    Args:
        kind: what a sample is called in messages.
        num_train: training samples.
        allowed: share of them that may be unreadable.
    """

    kind: str
    num_train: int
    allowed: float
    _names: dict[str, None] = field(default_factory=dict)
    _train: dict[int, str] = field(default_factory=dict)
    _missing: dict[str, list[int]] = field(default_factory=dict)

    def in_training(self, samples: list[Unreadable], *, stop: bool = False) -> None:
        """Note samples that others have replaced; `stop` says that no replacement was found.

        Raises:
            UserError: more of the training set than is allowed, or `stop`.
        """
        self._note(samples, "another one takes its place")
        self._train.update((sample.index, sample.name) for sample in samples)
        met, total = len(self._train), self.num_train
        if stop or met > self.allowed * total:
            names = ", ".join(list(self._train.values())[:3])
            raise UserError(
                f"{met} of {total} training {self.kind}s are unreadable ({met / total:.2%}, allowed "
                f"{self.allowed:.2%}), such as {names}; repair or remove them, or raise data.max_unreadable."
            )

    def start(self, evaluation: str) -> None:
        """Count an evaluation of this name anew."""
        self._missing[evaluation] = []

    def in_evaluation(self, evaluation: str, samples: list[Unreadable]) -> None:
        """Note samples that an evaluation lacks."""
        self._note(samples, "it counts as wrong")
        self._missing[evaluation] += [sample.index for sample in samples]

    def missing(self, evaluation: str) -> list[int]:
        """Indices of the samples that the latest evaluation of this name lacked."""
        return self._missing.get(evaluation, [])

    def report(self, *evaluations: str) -> dict[str, Any]:
        """Distinct ones of all epochs, those of the latest evaluation of each name, the first file names."""
        counts = {f"unreadable_{name}": len(self.missing(name)) for name in evaluations}
        return {"unreadable_train": len(self._train), **counts, "files": list(self._names)[:10]}

    def _note(self, samples: list[Unreadable], outcome: str) -> None:
        for sample in samples:
            if sample.name not in self._names:
                self._names[sample.name] = None
                logger.warning(shown(f"unreadable {self.kind} {sample.name} ({sample.reason}): {outcome}"))
