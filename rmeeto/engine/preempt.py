"""Being told to leave: SIGTERM and SIGUSR1 (a scheduler's notice) save a checkpoint and end the run."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch

from rmeeto.engine.dist import World
from rmeeto.errors import UserError

EXIT_CODE = 75  # EX_TEMPFAIL: try again, with --resume
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_GPU_STEPS = 8  # between two looks at the other processes' signals: each waits for the GPU


class Preempted(UserError):
    """The run was told to leave, and has saved what it had."""


class Notice:
    """Whether any process has been told to leave. Signals are listened to inside its context, in the main thread."""

    def __init__(self, world: World) -> None:
        self._world, self._steps = world, 0
        self.signal: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Notice:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def given(self) -> bool:
        """Whether this or another process was told; all processes are to ask, and get the same answer."""
        if self._world.size == 1:
            return self.signal is not None
        self._steps += 1
        if self._world.device.type == "cuda" and self._steps % _GPU_STEPS:
            return False
        told = torch.tensor([self.signal is not None], dtype=torch.int32, device=self._world.device)
        return bool(self._world.all_reduce(told, "MAX").item())
