"""Has the server beside this file run a command line of Python with this process's folder, environment and files."""

import array
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

folder = os.path.dirname(os.path.abspath(sys.argv[0]))
address = os.path.join(folder, "socket")


def connected():
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
    except OSError:
        return None
    return server


def started():
    with open(os.path.join(folder, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # only one of the tests' processes starts it
        found = connected()
        if found is None:
            plain = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR")}
            subprocess.Popen(
                [sys.executable, "-m", "tests.warm.server", folder],
                cwd=os.environ["RMEETO_TESTS_ROOT"], stdin=subprocess.DEVNULL,
                env=plain | {"OMP_NUM_THREADS": "1", "RMEETO_TESTS_WARM": folder},
                stdout=open(os.path.join(folder, "log"), "a"), stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        while found is None:
            time.sleep(0.05)
            found = connected()
        return found


arguments = sys.argv[1:]
if not arguments or arguments[0] not in ("-m", "-c", "-W") and arguments[0].startswith("-"):
    os.execv(sys.executable, [sys.executable, *arguments])
server = connected() or started()
request = json.dumps({"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
server.sendmsg(
    [len(request).to_bytes(8, "little")],
    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))],
)
server.sendall(request)
answers = server.makefile("r")
child = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, _: os.kill(child, number))
status = int(answers.readline() or -9)
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
sys.exit(status)
