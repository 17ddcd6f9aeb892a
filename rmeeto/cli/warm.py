"""Run a recipe whose commands are done by a few processes that stay: `python -m rmeeto.cli.warm 8 bash RECIPE`.

The recipe starts its commands as ever, JOBS of them at once, with a PYTHON that hands each to one of the processes
(`warm_client.py`). Those have imported torch, and what a command has brought there is there for the next: a CUDA
context, compiled kernels, batches made of images in memory. A command's numbers are those that it has in a process of
its own, for every run seeds all that it draws from. A process in which something else than a run's settings was at
fault gives way to a new one.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmeeto.errors import UserError, shown

MOST = 64  # processes
ROOM = 1 << 30  # bytes of batches that each keeps
_WHOLE = 0, 2  # exit codes that leave a process as it was: done, and settings or data that do not fit
_NOTICES = signal.SIGTERM, signal.SIGUSR1


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes, and a command that is given their number as JOBS and their door as PYTHON.

    Returns:
        The command's exit code; 2 for a call that cannot be meant.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        count, command = _read(given)
        with tempfile.TemporaryDirectory(prefix="rmeeto") as name, socket.socket(socket.AF_UNIX) as door:
            python = _open(door, Path(name))
            importlib.import_module("rmeeto.cli.task")  # torch and all that takes long; a GPU is each process's own
            environment = {"JOBS": str(count), "NPROC": "1", **os.environ, "PYTHON": python}
            return Crew(door, count).during(command, environment)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _read(given: Sequence[str]) -> tuple[int, list[str]]:
    count, *command = given or [""]
    if not (count.isascii() and count.isdecimal() and 1 <= int(count) <= MOST and command):
        raise UserError(
            f"got {shown(shlex.join(given)) or 'nothing'}; expected the number of processes (1 to {MOST}) and a "
            "command, such as 8 bash image_task/exp_sh/fashion/all.sh"
        )
    return int(count), command


def _open(door: socket.socket, folder: Path) -> str:
    """Open the door in a folder that is the user's alone; the program that knocks there."""
    path = str(folder / "door")
    if len(os.fsencode(path)) > 100:  # the system's limit is 107
        raise UserError(f"{shown(path)} is too long a path for a socket; let TMPDIR name a folder with a shorter one.")
    door.bind(path)
    door.listen(4096)
    door.setblocking(False)  # all of the processes hear a knock, and one opens
    python = folder / "python"
    words = [sys.executable, "-IS", str(Path(__file__).with_name("warm_client.py")), path]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    python.chmod(0o700)
    return str(python)


class Crew:
    """The processes, as many as there were to be until the command ends.

    Args:
        door: a listening socket, at which each waits for its next command line.
    """

    def __init__(self, door: socket.socket, count: int) -> None:
        self._door, self._count = door, count
        self._alive, self._open = os.pipe()  # its other end closes with this process, however it ends
        self._workers: dict[int, int] = {}  # their files that tell of their end, and their numbers
        self._leaving = False

    def during(self, command: Sequence[str], environment: dict[str, str]) -> int:
        """Keep the processes up until a command ends; its exit code."""
        before = {number: signal.signal(number, self._pass_on) for number in _NOTICES}
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _leave_alone)  # the command's own matter
        try:
            self._fill()
            process = subprocess.Popen(command, env=environment)
            ended = os.pidfd_open(process.pid)
            while ended not in (ready := select.select([ended, *self._workers], [], [])[0]):
                for file in ready:
                    os.waitpid(self._workers.pop(file), 0)
                    os.close(file)
                self._fill()
                if not self._workers:
                    self._door.close()  # who waits there need not wait
            os.close(ended)
            code = process.wait()
            return code if code >= 0 else 128 - code
        except OSError as error:
            if error.filename is None:
                raise
            print(f"error: {shown(error.filename)} cannot be run: {shown(error.strerror)}", file=sys.stderr)
            return 2
        finally:
            os.close(self._open)
            for file, pid in self._workers.items():
                os.waitpid(pid, 0)
                os.close(file)
            os.close(self._alive)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _fill(self) -> None:
        while len(self._workers) < self._count and not self._leaving:
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    os.close(self._open)
                    _work(self._door, self._alive)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            self._workers[os.pidfd_open(pid)] = pid

    def _pass_on(self, number: int, _: Any) -> None:
        """A scheduler's notice: runs save and leave, and nothing new is started."""
        self._leaving = True
        for pid in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _leave_alone(number: int, _: Any) -> None:
    """Unlike a signal that is ignored, this one is not ignored by what is started."""


def _work(door: socket.socket, alive: int) -> None:
    """Run one command line after the other until the first process is gone, or one leaves this one in doubt."""
    os.setsid()  # Ctrl-C comes by way of the client
    for number in _NOTICES:
        signal.signal(number, signal.SIG_DFL)
    importlib.import_module("rmeeto.data.kept").KEPT.start(ROOM)
    code = 0
    while code in _WHOLE:
        if alive in select.select([door, alive], [], [])[0]:
            return
        with contextlib.suppress(BlockingIOError):  # another was first
            client, _ = door.accept()
            with client:
                code = _serve(client)


def _serve(client: socket.socket) -> int:
    _, passed, *_ = client.recvmsg(1, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    files, lines = array.array("i", passed[0][2]), client.makefile("r")
    wanted = json.loads(lines.readline())
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        open(place, mode, closefd=False, encoding="utf-8", errors=errors, buffering=1 if mode == "w" else -1)
        for place, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
    )
    done = threading.Event()
    threading.Thread(target=_leave_with, args=(client, done), daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    client.sendall(f"{os.getpid()}\n".encode())
    try:
        code = _run(**wanted)
    finally:
        signal.signal(signal.SIGINT, _leave_alone)
        done.set()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            file.flush()
    for place in range(3):  # who reads the output sees its end
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, place)
        os.close(null)
    with contextlib.suppress(OSError):
        client.sendall(f"{code}\n".encode())
    return code


def _leave_with(client: socket.socket, done: threading.Event) -> None:
    """Who waited for the command was killed: it is told to leave."""
    with contextlib.suppress(OSError):
        client.recv(1)
    if not done.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _run(module: str, argv: list[str], folder: str, environment: dict[str, str]) -> int:
    """What `python -m MODULE ARGV` does, but for the imports that are there already."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        if folder not in sys.path:
            sys.path.insert(0, folder)
        program = importlib.import_module(module)
        sys.argv = [str(program.__file__), *argv]
        return program.main(argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        gc.collect()  # models and data of this command


if __name__ == "__main__":
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()
    sys.exit(main())
