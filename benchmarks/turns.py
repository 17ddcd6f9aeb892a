"""Processes that take turns: each stands still until it is told to go on, so that pieces of several kinds of work are
measured one behind the other, on the same machine in the same seconds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from types import TracebackType
from typing import Any

_fork = multiprocessing.get_context("fork")
PATIENCE = 300  # seconds, for a piece


class Group:
    """Forked processes that do a piece of their work together whenever they are told to.

    Args:
        count: of the processes.
        work: called in each with its rank; `rest(value)`, which says what a piece gave and returns when the next is
            wanted; and `meet`, which waits for the others. The first rest is behind what has to be prepared.
    """

    def __init__(self, count: int, work: Callable[[int, Callable[[Any], None], Callable[[], Any]], None]) -> None:
        barrier, pipes = _fork.Barrier(count), [_fork.Pipe() for _ in range(count)]

        def run(rank: int) -> None:
            def rest(value: Any) -> None:
                pipes[rank][1].send(value)
                pipes[rank][1].recv()

            work(rank, rest, lambda: barrier.wait(PATIENCE))

        self._ends = [ours for ours, _ in pipes]
        self._processes = [_fork.Process(target=run, args=(rank,), daemon=True) for rank in range(count)]
        for process in self._processes:
            process.start()

    def __enter__(self) -> Group:
        self._answers()
        return self

    def turn(self) -> list[Any]:
        """Do the next piece; what it gave, by rank."""
        for end in self._ends:
            end.send(None)
        return self._answers()

    def _answers(self) -> list[Any]:
        return [self._answer(rank) for rank in range(len(self._ends))]

    def _answer(self, rank: int) -> Any:
        for _ in range(PATIENCE):
            ended = not self._processes[rank].is_alive()
            if self._ends[rank].poll(1.0):
                return self._ends[rank].recv()
            if ended:
                raise RuntimeError(f"process {rank} of {len(self._ends)} ended; what it said stands above")
        raise RuntimeError(f"process {rank} of {len(self._ends)} was not done within {PATIENCE} s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.join()
