"""The launcher: what it says and returns where a process fails, and when it starts all anew."""

from __future__ import annotations

import os
import signal

import pytest

from rmeeto.cli.launch import main
from tests import forked

# What a process does: exit code of (rank, number of restarts so far); killed where that is negative.
PROCESS = """
import os, sys
rank, restarts = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
print(f"rank {rank} started {restarts}", flush=True)
code = %s
os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
"""
KILLED = "-9 if rank and not restarts else 0"


@pytest.mark.parametrize(
    ("code", "restarts", "outcome", "starts", "said"),
    [
        ("2 if rank else 0", 3, 2, 1, ""),  # a user error: it has printed its line, and would again
        ("75", 3, 75, 1, ""),
        (KILLED, 0, 137, 1, "error: process 1 ended by signal 9; the others were stopped"),
        (KILLED, 2, 0, 2, "note: process 1 ended by signal 9; all are started anew, 2 times at most"),
    ],
)
def test_who_fails_is_named_and_started_anew_as_often_as_wanted(tmp_path, capfd, code, restarts, outcome, starts, said):
    (tmp_path / "process.py").write_text(PROCESS % code)
    line = f"--standalone --nproc_per_node 2 --max_restarts {restarts} {tmp_path / 'process.py'}".split()
    assert forked.wait([forked.fork(lambda: main(line))]) == [outcome]
    out, errors = capfd.readouterr()
    assert out.count("rank 1 started") == starts
    assert errors.strip() == said


@pytest.mark.parametrize(
    ("heard", "outcome", "said"),
    [
        ("sys.exit(75)", 75, ""),
        ("sys.exit(1)", 1, "error: process 0 ended with exit code 1 before all had saved"),
        ("os.kill(os.getpid(), 9)", 137, "error: process 0 ended by signal 9 before all had saved"),
    ],
)
def test_a_schedulers_notice_ends_all_with_the_code_that_goes_on_where_they_saved(
    tmp_path, capfd, heard, outcome, said
):
    (tmp_path / "process.py").write_text(
        "import os, signal, sys, time, pathlib\n"
        f"signal.signal(signal.SIGUSR1, lambda *_: {heard})\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(1000)\n"
    )
    line = f"--standalone --nproc_per_node 1 {tmp_path / 'process.py'}".split()
    pid = forked.fork(lambda: main(line))
    forked.until(lambda: (tmp_path / "ready").exists())
    os.kill(pid, signal.SIGUSR1)
    assert forked.wait([pid]) == [outcome]
    assert said in capfd.readouterr().err
