"""Has one of the processes of `rmeeto.cli.warm` run a task's command line; a file by itself, that starts in no time.

`python -IS warm_client.py SOCKET ARGUMENTS...` takes Python's arguments. What is no task's main program goes to Python.
"""

import array
import json
import os
import signal
import socket
import sys

_MOMENT = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1


def main(address, *arguments):
    """Exit code of the command line."""
    if arguments[:1] != ("-m",) or not arguments[1].endswith("_task.main"):
        os.execv(sys.executable, [sys.executable, *arguments])
    signal.pthread_sigmask(signal.SIG_BLOCK, _MOMENT)  # until there is a process to pass them on to
    server, passed = socket.socket(socket.AF_UNIX), []
    try:
        server.connect(address)
        wanted = {"module": arguments[1], "argv": arguments[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
        files = array.array("i", [0, 1, 2])
        server.sendmsg([b"\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        server.sendall(json.dumps(wanted).encode() + b"\n")
        answers = server.makefile("r")
        process = answers.readline()
        for number in _MOMENT if process else ():
            signal.signal(number, lambda number, _: passed.append(number) or os.kill(int(process), number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _MOMENT)
        code = answers.readline()
    except OSError:
        code = ""
    if not code and passed:
        return 128 + passed[-1]
    if not code:
        print(
            "error: the process that was to run this is gone; the same command with --resume goes on", file=sys.stderr
        )
    return int(code or 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
