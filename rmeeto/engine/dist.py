"""One process, or several started by torchrun: who am I, and how do we agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rmeeto.errors import UserError, shown

T = TypeVar("T")
PATIENCE = timedelta(minutes=10)  # that a process waits for the others
_LOST = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")  # gloo's words
DEVICES = ("auto", "cpu", "cuda")


class RankError(UserError):
    """A user error that only one process has met: it has to report it even if it is not the main one."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. Without a launcher every method is a local call."""

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def print(self, *lines: str) -> None:
        """Print lines on the main process, each as `shown` has it."""
        if self.is_main:
            print(*map(shown, lines), sep="\n", flush=True)

    def all_reduce(self, tensor: torch.Tensor, op: str = "SUM") -> torch.Tensor:
        """Reduce a tensor in place over all processes (`op`: SUM, MIN or MAX) and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, op=getattr(dist.ReduceOp, op))
        return tensor

    def gather(self, value: T) -> list[T]:
        """Every process's value, in rank order, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, function: Callable[[], T]) -> T:
        """Run `function` on the main process; every process gets its result, or raises its UserError."""
        outcome: list[Any] = [None, None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except UserError as error:
                outcome[1:] = type(error), error.args
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1](*outcome[2])
        return outcome[0]

    def on_every(self, function: Callable[[], T]) -> T:
        """Run `function` (without collectives) on every process; a UserError of one is raised by all."""
        result, lines = None, None
        try:
            result = function()
        except UserError as error:
            lines = error.args
        for rank, failure in enumerate(self.gather(lines)):
            if failure is not None:
                first, *others = failure
                raise UserError(first if rank == 0 else f"rank {rank}: {first}", *others)
        return result  # type: ignore[return-value]


def is_main_process() -> bool:
    """Whether this process reports for all, as the launcher's environment says before `start` has checked it."""
    size, rank = (os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    return not (size.isdecimal() and int(size) > 1 and rank.isdecimal() and int(rank) > 0)


def launch_notes() -> list[str]:
    """Whether a scheduler has started several of these processes, each of which takes itself for the only one."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if (
        "WORLD_SIZE" in os.environ
        or not tasks.isdecimal()
        or int(tasks) < 2
        or os.environ.get("SLURM_PROCID", "0") != "0"
    ):
        return []
    return [
        f"srun has started {tasks} of these, each a run of its own; start one run of them all with srun bash RECIPE"
    ]


def num_processes() -> int:
    """How many processes the launcher's environment speaks of.

    Raises:
        UserError: it is no number.
    """
    return _env_int("WORLD_SIZE", 1)


def lost_process(error: BaseException) -> str | None:
    """What an error says of another process that is gone or does not answer; None for an error of another kind."""
    text = str(error)
    if isinstance(error, dist.DistError) or any(sign in text for sign in _LOST):
        return text.splitlines()[0].rpartition("] ")[2][:160]
    return None


@contextmanager
def start(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started (its environment variables), or be the only one.

    Args:
        device: "auto" (a GPU if there is one), "cpu" or "cuda"; processes talk through gloo or NCCL.

    Raises:
        UserError: for an unknown or absent device, or a launcher environment that is not complete.
    """
    size = _env_int("WORLD_SIZE", 1)
    rank, local_rank = (_env_int("RANK", None), _env_int("LOCAL_RANK", None)) if size > 1 else (0, 0)
    chosen = _pick_device(device, local_rank)
    world = World(chosen, rank, local_rank, size)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield world
        return
    store = _meet(rank, size)
    patience = PATIENCE + timedelta(minutes=1)  # the watchdog is to be first: it says more
    joined: dict[str, Any] = {"store": store, "rank": rank, "world_size": size, "timeout": patience}
    if chosen.type == "cuda":
        dist.init_process_group("nccl", device_id=chosen, **joined)
    else:
        dist.init_process_group("gloo", **joined)
    try:
        yield world
    except BaseException:
        # A peer may wait in a collective, and NCCL's tear-down would wait for it; the launcher ends it anyway.
        if chosen.type == "cpu":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _meet(rank: int, size: int) -> dist.Store:
    """Where the processes find one another; those that were told other numbers would wait for ever.

    Raises:
        UserError: another process was told of more or fewer.
    """
    store, *_ = next(iter(dist.rendezvous("env://", rank, size, timeout=PATIENCE)))
    sizes = dist.PrefixStore(f"sizes{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    sizes.set(str(rank), str(size))
    told = ((other, int(sizes.get(str(other)))) for other in range(size))
    differs = next((found for found in told if found[1] != size), None)
    sizes.set(f"{rank} has read", "")
    if differs is not None:
        if rank == 0:  # the others read from this process
            with suppress(dist.DistError):
                sizes.wait([f"{other} has read" for other in range(size)], timedelta(seconds=10))
        raise RankError(
            f"rank {rank} was told of {size} processes, rank {differs[0]} of {differs[1]}; start all with the same "
            "NNODES and NPROC."
        )
    return store


def _env_int(name: str, default: int | None) -> int:
    value = os.environ.get(name, default)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(
            f"the environment says {name}={value!r} beside WORLD_SIZE={os.environ.get('WORLD_SIZE')!r}; "
            "start several processes with torchrun, or unset WORLD_SIZE."
        ) from None


def _pick_device(device: str, local_rank: int) -> torch.device:
    if device not in DEVICES:
        raise UserError(f"device={device!r}; expected one of {', '.join(DEVICES)}.")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("device='cuda': torch sees no GPU here; use device='cpu', or check the driver.")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} are visible; "
            "start at most that many processes."
        )
    return torch.device("cuda", local_rank)
