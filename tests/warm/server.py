"""`python -m tests.warm.server FOLDER`: forks itself for each command line that a client sends."""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import types
from pathlib import Path
from typing import Any

from tests.warm import MEGABYTES


def main(folder: Path) -> None:
    import matplotlib.backends.backend_agg  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import sklearn.datasets  # noqa: F401  (what takes long; nothing of the project, whose imports are the tests' matter)
    import timm  # noqa: F401
    import torch
    import torch._dynamo
    import torch.utils.tensorboard
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket.new"))
    listener.listen(16)
    (folder / "pid").write_text(str(os.getpid()))
    os.rename(folder / "socket.new", folder / "socket")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _serve(client)
        client.close()


def _serve(client: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, passed, *_ = client.recvmsg(8, socket.CMSG_SPACE(12))
    files = array.array("i", passed[0][2])
    text = b""
    while len(text) < int.from_bytes(size, "little"):
        text += client.recv(2**16)
    child = os.fork()
    if child == 0:
        client.close()
        for place, file in enumerate(files):
            os.dup2(file, place)
        os.closerange(3, 256)
        os._exit(_run(**json.loads(text)))
    for file in files:
        os.close(file)
    client.sendall(f"{child}\n".encode())
    ended = os.pidfd_open(child)
    if ended not in select.select([client, ended], [], [])[0]:  # who waits for it was killed
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    import atexit
    import random
    import runpy
    import threading
    import traceback
    import warnings

    import numpy as np

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if MEGABYTES in environment:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (int(environment[MEGABYTES]) << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    random.seed()
    np.random.seed()
    sys.stdin, sys.stdout, sys.stderr = (
        open(place, mode, closefd=False, encoding="utf-8", errors=errors, buffering=1 if mode == "w" else -1)
        for place, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
    )
    sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(":")), *sys.path[1:]]
    while arguments[0] == "-W":
        warnings._processoptions([arguments[1]])  # type: ignore[attr-defined]
        arguments = arguments[2:]
    try:
        code = _main_program(arguments, folder, runpy)
    except SystemExit as error:
        code = error.code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return 120
    return code if isinstance(code, int) else int(code is not None)


def _main_program(arguments: list[str], folder: str, runpy: Any) -> Any:
    kind, *rest = arguments
    if kind == "-m":
        sys.argv, sys.path[:0] = rest, [folder]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [""]
        program = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(program))
    else:
        sys.argv, sys.path[:0] = arguments, [str(Path(kind).resolve().parent)]
        runpy.run_path(kind, run_name="__main__")
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
