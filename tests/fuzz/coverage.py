"""Guided by coverage, where atheris is installed: `python -m tests.fuzz.coverage KIND -max_total_time=600`.

libFuzzer keeps the inputs that reach new lines of the project and changes them on, by the kind's mutator or its own;
it ends at the first finding, which is kept as by `tests.fuzz`. Further arguments are libFuzzer's.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["rmeeto", "image_task", "video_task"]):
    from tests.fuzz.kinds import KINDS

from tests.fuzz.case import Case, Refused  # noqa: E402
from tests.fuzz.runner import SEEDS  # noqa: E402
from tests.fuzz.sandbox import Sandbox  # noqa: E402


def main() -> None:
    name, *options = sys.argv[1:]
    kind = KINDS[name]
    seeds = kind.seeds()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    box = Sandbox(folder / "0")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds.values()):
        (corpus / str(number)).write_bytes(data)

    def try_one(data: bytes) -> None:
        case = Case(data, next(iter(seeds)))
        box.enter(kind.programs)
        try:
            kind.check(case, seeds)
            complaint = ""
        except Refused:
            complaint = ""
        except Exception as error:
            complaint = repr(error)
        box.stop()
        complaint = complaint or box.complaint(kind.may_read)
        if complaint:
            (SEEDS / name).mkdir(exist_ok=True)
            (SEEDS / name / f"{case.name}.bin").write_bytes(case.to_bytes())
            raise RuntimeError(complaint)

    def mutate(data: bytes, largest: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, largest)
        try:
            return kind.mutate(rng, {next(iter(seeds)): data}).data[:largest]
        except Exception:  # what it was made of is none of the kind any more
            return atheris.Mutate(data, largest)

    os.chdir(folder)
    atheris.Setup(
        [sys.argv[0], "-timeout=5", "-rss_limit_mb=4096", *options, str(corpus)],
        try_one,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
