"""Start a task in several processes: torchrun, whose own traceback does not bury the error of a process.

`python -m rmeeto.cli.launch` takes torchrun's arguments.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed.launcher.api
from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError

from rmeeto.engine.preempt import EXIT_CODE
from rmeeto.errors import shown

_EVERY = 30  # seconds
_FINAL = (
    2,
    130,
    EXIT_CODE,
)  # of a process that would end like this again: a user error, Ctrl-C, told to leave
_LOGGERS = ("torch.distributed.elastic", "torch.distributed.run")


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun.

    Returns:
        0; else the exit code of the process that failed first (2 after a user error, whose line it has printed), or
        75 where the launcher was told to leave and the processes have saved: the same command with --resume goes on.
    """
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    arguments = torchrun.parse_args(sys.argv[1:] if argv is None else list(argv))
    arguments.signals_to_handle += ",SIGUSR1"  # a scheduler's notice to all: the processes have it too
    torch.distributed.launcher.api.LocalElasticAgent = Agent
    if arguments.nnodes != "1:1":
        threading.Thread(target=_say_who_waits, args=(arguments,), daemon=True).start()
    try:
        torchrun.run(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code not in (1, 2, 130, EXIT_CODE):
            print(f"error: process {rank} ended {_how(code)}; the others were stopped", file=sys.stderr)
        return code if code > 0 else 128 - code
    except SignalException as error:
        return 130 if error.sigval.name == "SIGINT" else _left(Agent.codes)
    except (RendezvousError, TimeoutError, OSError) as error:
        print(f"error: the processes did not find each other: {shown(str(error))}", file=sys.stderr)
        return 1
    return 0


class Agent(LocalElasticAgent):
    """Starts and watches this machine's processes; those that would fail again are not started anew."""

    codes: ClassVar[dict[int, int]] = {}  # exit codes of those that were told to leave

    def _shutdown(self, *args: Any, **kwargs: Any) -> None:
        super()._shutdown(*args, **kwargs)
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        Agent.codes = {rank: handler.proc.returncode for rank, handler in handlers.items()}

    def _monitor_workers(self, worker_group: Any) -> Any:
        result = super()._monitor_workers(worker_group)
        failures = result.failures if result.is_failed() else {}
        if any(failure.exitcode in _FINAL for failure in failures.values()):
            self._remaining_restarts = 0
        elif failures and self._remaining_restarts > 0:
            rank, failure = next(iter(failures.items()))
            print(
                f"note: process {rank} ended {_how(failure.exitcode)}; all are started anew, "
                f"{self._remaining_restarts} times at most",
                file=sys.stderr,
                flush=True,
            )
        return result


def _left(codes: Mapping[int, int]) -> int:
    """The exit code where processes were told to leave, and ended so."""
    lost = {rank: code for rank, code in codes.items() if code not in (0, EXIT_CODE)}
    if not lost:
        return EXIT_CODE
    rank, code = next(iter(lost.items()))
    print(
        f"error: process {rank} ended {_how(code)} before all had saved; --resume goes on from the last checkpoint",
        file=sys.stderr,
    )
    return code if code > 0 else 128 - code


def _say_who_waits(arguments: Any) -> None:
    """Say every half minute that the other machines have not come, until this one has started its processes."""
    where = arguments.rdzv_endpoint or f"{arguments.master_addr}:{arguments.master_port}"
    here, waited = f"/proc/self/task/{os.getpid()}/children", 0
    while not (os.path.exists(here) and Path(here).read_text()):
        time.sleep(_EVERY)
        waited += _EVERY
        if not Path(here).read_text():
            print(
                f"waiting for {arguments.nnodes} machines at {where} since {waited} s",
                file=sys.stderr,
            )


def _how(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with exit code {code}"


if __name__ == "__main__":
    sys.exit(main())
