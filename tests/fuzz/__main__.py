"""`python -m tests.fuzz --minutes N`: what it finds goes to stderr, and one line of JSON to stdout, the last."""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import subprocess
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.fuzz.kinds import FAULTS, KINDS  # noqa: E402
from tests.fuzz.runner import SECONDS, SEEDS, run, saved, schedule  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long")
    parser.add_argument("--inputs", type=int, help="how many, over all kinds")
    parser.add_argument(
        "--replay",
        type=Path,
        nargs="?",
        const=SEEDS,
        metavar="FOLDER",
        help="first, or only, inputs that were kept",
    )
    parser.add_argument("--kind", action="append", choices=[*KINDS, *FAULTS], help="these alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of processor time for an input")
    parser.add_argument("--keep", type=Path, default=SEEDS, help="folder for inputs that are findings")
    args = parser.parse_args()
    if not (args.minutes or args.inputs or args.replay):
        parser.error("give --minutes, --inputs or --replay")
    names = args.kind or KINDS
    kinds = {name: {**KINDS, **FAULTS}[name] for name in names}

    began = time.monotonic()
    until = args.minutes and began + 60 * args.minutes
    jobs = itertools.chain(
        saved(kinds, args.replay) if args.replay else (),
        schedule(kinds, args.seed, args.inputs, until) if args.inputs or until else (),
    )
    tally = run(kinds, jobs, workers=args.workers, seconds=args.seconds, keep=args.keep)
    report = {
        "inputs": sum(tally.counts.values()),
        "findings": len(tally.findings),
        "by_kind": tally.by_kind(),
        "seconds": round(time.monotonic() - began, 1),
        "seed": args.seed,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    print(json.dumps(report), flush=True)
    os._exit(1 if tally.findings else 0)  # what libraries print as they are taken down would come after it


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


if __name__ == "__main__":
    main()
