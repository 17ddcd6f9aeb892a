"""Tries inputs in child processes: a parent imports everything once, and forks a child for every few of them."""

from __future__ import annotations

import faulthandler
import gc
import itertools
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.case import ACCEPT, Case, Kind, Refused, Wrong
from tests.fuzz.sandbox import Sandbox

SECONDS = 5.0  # of processor time for one input
PATIENCE = 12  # times as long by the clock, for one that waits
SEEDS = Path(__file__).parent / "seeds"
LARGEST_SEED = 1 << 17  # bytes of an input that is kept
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Tally:
    """Outcomes of inputs: how many were accepted, refused and found wrong, by kind."""

    counts: Counter = field(default_factory=Counter)
    findings: list[dict] = field(default_factory=list)

    def add(self, kind: str, outcome: str) -> None:
        self.counts[f"{kind} {outcome}"] += 1

    def by_kind(self) -> dict[str, dict[str, int]]:
        table: dict[str, dict[str, int]] = {}
        for name, count in sorted(self.counts.items()):
            kind, outcome = name.split(" ")
            table.setdefault(kind, {})[outcome] = count
        return table


@dataclass(frozen=True)
class Job:
    """Some inputs of one kind: the cases, or the numbers they are made from."""

    kind: str
    seed: int = 0
    numbers: range = range(0)
    cases: Sequence[Case] = ()

    def make(self, kind: Kind, seeds: Mapping[str, bytes]) -> list[Case]:
        return [*self.cases] or [case_of(kind, self.kind, seeds, self.seed, n) for n in self.numbers]


def case_of(kind: Kind, name: str, seeds: Mapping[str, bytes], seed: int, number: int) -> Case:
    """Input `number` of a run: the same for the same seed, whatever ran before. The first ones are honest."""
    if number < len(seeds):
        honest = list(seeds)[number]
        return Case(seeds[honest], honest, ACCEPT)
    return kind.mutate(random.Random(f"{seed}/{name}/{number}"), seeds)


def saved(kinds: Mapping[str, Kind], folder: Path = SEEDS) -> Iterator[Job]:
    """The inputs that were findings once."""
    for name in kinds:
        cases = [Case.from_bytes(path.read_bytes()) for path in sorted((folder / name).glob("*.bin"))]
        if cases:
            yield Job(name, cases=cases)


def schedule(kinds: Mapping[str, Kind], seed: int, inputs: int | None, until: float | None) -> Iterator[Job]:
    """Jobs of all kinds by their weights, in a fixed order that mixes them, until there are enough."""
    order = [name for name, kind in kinds.items() for _ in range(kind.weight)]
    total, done = len(order), dict.fromkeys(kinds, 0)
    wanted = {name: max(1, round((inputs or 0) * kind.weight / total)) for name, kind in kinds.items()}
    rng = random.Random(seed)
    while until is None or time.monotonic() < until:
        names = [name for name in order if until is not None or done[name] < wanted[name]]
        if not names:
            return
        name = min(names, key=lambda n: (done[n] / kinds[n].weight, rng.random()))
        size = kinds[name].batch if until is not None else min(kinds[name].batch, wanted[name] - done[name])
        yield Job(name, seed, range(done[name], done[name] + size))
        done[name] += size


def run(
    kinds: Mapping[str, Kind],
    jobs: Iterator[Job],
    *,
    workers: int = 1,
    seconds: float = SECONDS,
    keep: Path | None = None,
) -> Tally:
    """Try all inputs of the jobs, in some processes at once.

    Args:
        seconds: of processor time that an input may take.
        keep: folder where inputs that are findings are written, `<kind>/<digest>.bin`.
    """
    gc.collect()
    gc.freeze()
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as name:
        started = {}
        for number in range(workers):
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                code = 1
                try:
                    os.close(reader)
                    # Each has a copy of the generator, and takes every so-manieth job of it.
                    mine = itertools.islice(jobs, number, None, workers)
                    _Worker(kinds, Path(name, str(number)), seconds, keep, writer).work(mine)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            os.close(writer)
            started[reader] = child
        _collect(started, tally)
    return tally


def _collect(started: Mapping[int, int], tally: Tally) -> None:
    pending = dict.fromkeys(started, b"")
    while pending:
        for reader in select.select(list(pending), [], [])[0]:
            part = os.read(reader, 65536)
            *lines, pending[reader] = (pending[reader] + part).split(b"\n")
            for line in map(json.loads, lines):
                tally.add(line["kind"], line["outcome"])
                if line["outcome"] == "failed":
                    tally.findings.append(line)
                    print(f"FINDING {line['kind']} {line['name']}: {line['text'][-2000:]}", file=sys.stderr)
            if not part:
                del pending[reader]
                if os.waitstatus_to_exitcode(os.waitpid(started[reader], 0)[1]):
                    raise RuntimeError("a worker of the fuzzer itself has failed; see above")


class _Worker:
    """One process that forks the children and watches them."""

    def __init__(self, kinds: Mapping[str, Kind], folder: Path, seconds: float, keep: Path | None, writer: int):
        self.kinds, self.seconds, self.keep, self.writer = kinds, seconds, keep, writer
        self.box = Sandbox(folder)
        self.seeds: dict[str, Mapping[str, bytes]] = {}

    def work(self, jobs: Iterator[Job]) -> None:
        for job in jobs:
            kind = self.kinds[job.kind]
            if job.kind not in self.seeds:
                self.seeds[job.kind] = kind.seeds()
            cases = job.make(kind, self.seeds[job.kind])
            while cases:
                done = self._batch(job.kind, cases)
                cases = cases[done:]

    def _batch(self, name: str, cases: list[Case]) -> int:
        """Try cases in one child; how many of them it got through, or was ended by."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(reader)
                os.setsid()
                self._try(name, cases, writer)
            finally:
                os._exit(0)
        os.close(writer)
        done, text, buffer, began, used = 0, "", b"", time.monotonic(), 0.0
        while True:
            if select.select([reader], [], [], 0.25)[0]:
                part = os.read(reader, 65536)
                if not part:
                    break
                *lines, buffer = (buffer + part).split(b"\n")
                for line in map(json.loads, lines):
                    self._report(name, cases[done], *line)
                    done, began, used = done + 1, time.monotonic(), _processor_time(child)
                continue
            spent = _processor_time(child) - used
            if spent > self.seconds or time.monotonic() - began > self.seconds * PATIENCE:
                text = f"a hang: {spent:.1f} s of processor time, {time.monotonic() - began:.1f} s by the clock"
                break
        os.close(reader)
        for end in (lambda: os.killpg(child, signal.SIGKILL), lambda: os.kill(child, signal.SIGKILL)):
            try:
                end()
            except ProcessLookupError:
                pass
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if done < len(cases):
            said = self.box.output.read_text(errors="replace")[:1500]
            self._report(name, cases[done], "failed", text or f"a crash: exit code {code}\n{said}")
            done += 1
        return done

    def _report(self, kind: str, case: Case, outcome: str, text: str) -> None:
        if outcome == "failed" and self.keep is not None:
            raw = case.to_bytes()
            if len(raw) <= LARGEST_SEED:
                (self.keep / kind).mkdir(parents=True, exist_ok=True)
                (self.keep / kind / f"{case.name}.bin").write_bytes(raw)
        line = {
            "kind": kind,
            "name": case.name,
            "outcome": outcome,
            "text": text if outcome == "failed" else "",
        }
        _write(self.writer, line)

    def _try(self, name: str, cases: list[Case], writer: int) -> None:
        """In the child: each case in an empty folder, one line on each."""
        kind = self.kinds[name]
        self.box.limit()
        faulthandler.enable(2)
        for case in cases:
            self.box.enter(kind.programs)
            try:
                outcome, text = "accepted", kind.check(case, self.seeds[name])
            except Refused as refused:
                outcome, text = "refused", str(refused)
            except Wrong as wrong:
                outcome, text = "failed", f"a wrong result: {wrong}"
            except BaseException:
                outcome, text = "failed", traceback.format_exc()
            printed = self.box.leave()
            complaint = self.box.complaint(kind.may_read) or _unfit(kind, outcome, text, printed)
            if not complaint and case.right == ACCEPT and outcome == "refused":
                complaint = f"an honest input was refused: {text}"
            _write(writer, ("failed", complaint) if complaint else (outcome, text))
        os.chdir("/")
        shutil.rmtree(self.box.run, ignore_errors=True)


def _unfit(kind: Kind, outcome: str, text: str, printed: str) -> str:
    """What is wrong with how an outcome was said."""
    if outcome == "refused" and (not text.strip() or len(text.splitlines()) > kind.lines):
        return f"a refusal of {len(text.splitlines())} lines: {text[:1000]!r}"
    shown = printed + (text if outcome == "refused" else "")
    odd = next((c for c in shown if not c.isprintable() and c not in "\n\t"), None)
    if odd is not None:
        return f"{odd!r} was printed: {shown[max(0, shown.index(odd) - 200) :][:400]!r}"
    return f"it printed {printed[-1500:]}" if "Traceback (most recent" in printed else ""


def _processor_time(process: int) -> float:
    """Seconds of a process and of those it has waited for."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS


def _write(descriptor: int, line: object) -> None:
    raw = json.dumps(line).encode() + b"\n"
    while raw:
        raw = raw[os.write(descriptor, raw) :]
