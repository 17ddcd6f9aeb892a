"""Processes with gloo between them, forked from the test's own: nothing is imported anew."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 300.0  # seconds, on a machine that has much else to do


def free_port() -> int:
    """A port that nobody listens on, of those that no other process is given by chance before it is used."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What a launcher tells process `rank` of `size`."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in ranks.items()}}


def fork(work: Callable[[], Any], **environ: str) -> int:
    """Start a process that does `work`, which may return its exit code; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.environ.update(environ)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pids: list[int], timeout: float = PATIENCE) -> list[int]:
    """The exit codes of processes (negative: the signal that ended them); those that run longer are killed."""
    codes: dict[int, int] = {}
    end = time.monotonic() + timeout
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
        if time.monotonic() > end:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def until(condition: Callable[[], Any], timeout: float = PATIENCE) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def run(size: int, function: Callable[[], Any], timeout: float = PATIENCE) -> list[Any]:
    """What a function returns in each of `size` processes, in the order of their ranks."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(size)]

        def work(path: Path) -> None:
            path.write_bytes(pickle.dumps(function()))

        pids = [
            fork(lambda path=path: work(path), **environment(rank, size, port)) for rank, path in enumerate(outputs)
        ]
        assert wait(pids, timeout) == [0] * size
        return [pickle.loads(path.read_bytes()) for path in outputs]
