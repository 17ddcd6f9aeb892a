"""Trainings that are killed again and again, and must end as if nothing had happened: `python benchmarks/faults.py`.

Runs of 1, 2 and 4 processes on the embedded digits are killed with SIGKILL: any rank or all at once, at any moment, and
inside the writes of checkpoints (watched for by their temporary file); then the same command goes on with --resume.
What such a run ends with is compared with an undisturbed one, to the last bit; a fourth kind goes on with another
number of processes each time and is compared within rounding. The last line is JSON; the exit code is 1 if anything was
lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python benchmarks/faults.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sklearn.datasets  # noqa: F401  (what is imported here need not be after every fork)
import torch
import torch.utils.tensorboard  # noqa: F401

from benchmarks import report, results
from image_task.main import main as train
from rmeeto.engine import checkpoint
from rmeeto.engine.resume import FILES
from rmeeto.errors import UserError

RUN = (
    "--data_set digits --input_size 8 --r 2 --device cpu --num_workers 0 --batch_size 4 --processes 4 --accumulation 1 "
    "--max_train_batches 4 --max_eval_batches 1 --epochs 3 --lr 1e-2 --drop_path 0.3 --model_ema True "
    "--model_ema_decay 0.9 --log_every 1 --checkpoint_every 1e-6"
).split()
SIZES = (1, 2, 4)
CHANGING = "1 to 4"  # processes, others after every kill
NOTICED = 30.0  # seconds in which who survives has ended
MARK = "--- started\n"
ROUNDING = 0.02  # of the norm of all weights


def main(argv: Sequence[str] | None = None) -> int:
    """Kill, resume, compare; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks faults", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of a result file; none: only print")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        bench = Bench(Path(folder), random.Random(options.seed))
        rows = [bench.row(kind, options.kills // 4) for kind in (*SIZES, CHANGING)]
    lost = [row for row in rows if row["differ"] or row["tracebacks"] or row["survivors end, s"] > NOTICED]
    if options.out:
        path = results.path_of(options.out, "faults", "fp32", torch.device("cpu"))
        result = results.begin(path, "faults", "fp32", torch.device("cpu"), force=True)
        results.write(path, {**result, "command": ["python", "benchmarks/faults.py", *sys.argv[1:]], "rows": rows})
        report.update()
    print(json.dumps({"suite": "faults", "kills": sum(row["kills"] for row in rows), "lost": len(lost), "rows": rows}))
    return 1 if lost else 0


class Bench:
    """The undisturbed runs by number of processes, and the disturbed ones."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.wholes: dict[int, Path] = {}
        self.seconds: dict[int, float] = {}
        for size in SIZES:
            began, path = time.monotonic(), folder / f"whole{size}"
            codes = wait(start(path, size))
            assert set(codes.values()) == {0}, (path.parent / f"{path.name}.txt").read_text()
            self.wholes[size], self.seconds[size] = path, time.monotonic() - began
            print(f"undisturbed, {size} processes: {self.seconds[size]:.1f} s", flush=True)

    def row(self, kind: int | str, kills: int) -> dict[str, Any]:
        """So many kills of runs of one kind."""
        row: dict[str, Any] = {
            "processes": kind,
            "kills": 0,
            "of all at once": 0,
            "inside writes": 0,
            "runs": 0,
        }
        row |= {
            "differ": 0,
            "ended badly": 0,
            "steps repeated at most": 0,
            "survivors end, s": 0.0,
            "tracebacks": 0,
        }
        began = time.monotonic()
        while row["kills"] < kills:
            path = self.folder / f"{kind}-{row['runs']}"
            while self.disturb(path, kind if isinstance(kind, int) else self.rng.choice(SIZES), row):
                pass
            row["runs"] += 1
            row["differ"] += not self.compare(path, kind)
            row["tracebacks"] += (path.parent / f"{path.name}.txt").read_text().count("Traceback")
            print(
                f"{kind} processes: {row['kills']} kills, {row['differ']} of {row['runs']} runs differ",
                flush=True,
            )
        return row | {"minutes": round((time.monotonic() - began) / 60, 1)}

    def disturb(self, path: Path, size: int, row: dict[str, Any]) -> bool:
        """Start or go on with a run and kill it; False where it was faster."""
        rng, temporary = self.rng, path / "run" / f"{FILES[0]}.tmp"
        pids = start(path, size)
        at = time.monotonic() + rng.random() * 0.9 * self.seconds[size]
        in_write = rng.random() < 0.4
        while alive(pids) and (time.monotonic() < at or (in_write and not temporary.exists())):
            time.sleep(0.0005)
        codes = {pid: code for pid in pids if (code := poll(pid)) is not None}
        if codes:
            codes |= wait([pid for pid in pids if pid not in codes])
            if set(codes.values()) != {0}:
                row["ended badly"] += 1
                print(f"exit codes {[codes[pid] for pid in pids]} without a kill", flush=True)
            return False
        victims = pids if rng.random() < 0.2 else [pids[0] if in_write else rng.choice(pids)]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        # Who waits for others that never came is ended by the launcher, at once; there is none here.
        wait(pids, timeout=2 * NOTICED if met(path) else 0.0)
        row["kills"] += 1
        row["of all at once"] += len(victims) == size > 1
        row["inside writes"] += temporary.exists()
        row["survivors end, s"] = max(row["survivors end, s"], round(time.monotonic() - killed, 1))
        row["steps repeated at most"] = max(row["steps repeated at most"], repeated(path))
        return True

    def compare(self, path: Path, kind: int | str) -> bool:
        """Whether a run has ended like the undisturbed one."""
        whole = self.wholes[kind if isinstance(kind, int) else 1]
        ours, theirs = (checkpoint.load(folder / "run" / FILES[0]) for folder in (path, whole))
        if not isinstance(kind, int):
            return logged(path) == logged(whole) and all(
                distance(ours[name], theirs[name]) < ROUNDING for name in ("model", "model_ema")
            )
        texts = [(folder / "run" / "result.json").read_bytes() for folder in (path, whole)]
        return texts[0] == texts[1] and same(ours, theirs) and logged(path) == logged(whole)


def start(path: Path, size: int) -> list[int]:
    """Fork the processes of a run, which goes on where there is something; their numbers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [
        *RUN,
        "--output_dir",
        str(path),
        "--name",
        "run",
        *(["--resume"] if (path / "run").exists() else []),
    ]
    pids, said = [], path.parent / f"{path.name}.txt"
    with said.open("a") as file:
        file.write(MARK)
    for rank in range(size):
        pid = os.fork()
        if not pid:
            run_as(rank, size, port, line, said)
        _ended.pop(pid, None)  # the number of one that ended long ago
        pids.append(pid)
    return pids


def run_as(rank: int, size: int, port: int, line: list[str], said: Path) -> None:
    """Be one process of a run, and end with its exit code."""
    code = 70
    try:
        output = os.open(said, os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}
        code = train(line)
    except BaseException as error:
        os.write(2, f"Traceback: {error!r}\n".encode())
    finally:
        os._exit(code)


_ended: dict[int, int] = {}


def poll(pid: int) -> int | None:
    """The exit code of a process that has ended, else None."""
    if pid not in _ended and (found := os.waitpid(pid, os.WNOHANG))[0]:
        _ended[pid] = os.waitstatus_to_exitcode(found[1])
    return _ended.get(pid)


def alive(pids: list[int]) -> bool:
    """Whether all of them run."""
    return all(poll(pid) is None for pid in pids)


def met(path: Path) -> bool:
    """Whether the processes of a run have found each other: then it has printed its header."""
    said = path.parent / f"{path.name}.txt"
    return "\nfolder " in said.read_text().rpartition(MARK)[2]


def wait(pids: list[int], timeout: float = 600.0) -> dict[int, int]:
    """The exit codes of processes; those that outlast `timeout` are ended."""
    end = time.monotonic() + timeout
    while any(poll(pid) is None for pid in pids):
        if time.monotonic() > end:
            for pid in pids:
                if poll(pid) is None:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return {pid: _ended[pid] for pid in pids}


def repeated(path: Path) -> int:
    """Steps that are in the log and in no checkpoint."""
    steps = [number for event, number in logged(path) if event == "step"]
    saved = 0
    for name in reversed(FILES):
        try:
            saved = checkpoint.load(path / "run" / name)["position"]["step"]
        except UserError:
            continue
    return max(0, max(steps, default=0) - saved)


def logged(path: Path) -> list[tuple[str, int]]:
    """Event and step of each line of the log."""
    log = path / "run" / "log.jsonl"
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")] if log.exists() else []
    return [(line["event"], line["step"]) for line in map(json.loads, lines)]


def same(a: Any, b: Any) -> bool:
    """Whether two trees of tensors and values are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Of weights, as a share of their norm."""
    parts = [torch.cat([state[name].double().flatten() for name in b]) for state in (a, b)]
    return float((parts[0] - parts[1]).norm() / parts[1].norm())


if __name__ == "__main__":
    sys.exit(main())
