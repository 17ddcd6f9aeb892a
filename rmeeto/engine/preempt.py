"""When to save and when to leave: a clock, and SIGTERM or SIGUSR1 (a scheduler's notice), which all processes obey."""

from __future__ import annotations

import math
import signal
import threading
from enum import IntEnum
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

import torch

from rmeeto.engine.dist import World
from rmeeto.errors import UserError

EXIT_CODE = 75  # EX_TEMPFAIL: try again, with --resume
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_GPU_STEPS = 8  # between two looks at the other processes: each waits for the GPU


class Order(IntEnum):
    """What all processes are to do next, the most urgent last."""

    GO_ON = 0
    SAVE = 1
    LEAVE = 2


class Preempted(UserError):
    """The run was told to leave, and has saved what it had."""


class Notice:
    """Whether a checkpoint is due, or any process has been told to leave.

    Signals are listened to inside its context, in the main thread.

    Args:
        minutes: between two checkpoints by the main process's clock; 0: none is ever due.
    """

    def __init__(self, world: World, minutes: float = 0.0) -> None:
        self._world, self._steps, self._seconds = world, 0, 60 * minutes or math.inf
        self.signal: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Notice:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        self.saved()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def saved(self) -> None:
        """The time to the next checkpoint begins."""
        self._due = monotonic() + self._seconds

    def order(self) -> Order:
        """What to do now; all processes are to ask after every step, and get the same answer."""
        own = Order.SAVE if self._world.is_main and monotonic() >= self._due else Order.GO_ON
        own = own if self.signal is None else Order.LEAVE
        if self._world.size == 1:
            return own
        self._steps += 1
        if self._world.device.type == "cuda" and self._steps % _GPU_STEPS:
            return Order.GO_ON
        told = torch.tensor([own], dtype=torch.int32, device=self._world.device)
        return Order(int(self._world.all_reduce(told, "MAX").item()))
