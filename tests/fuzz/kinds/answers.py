"""A teacher's answers on disk: damaged files, and entries whose digest somebody has computed for them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from rmeeto.engine.dist import World
from rmeeto.engine.distill import divergence_of_top
from rmeeto.engine.teacher_cache import Answers, TeacherCache
from rmeeto.errors import UserError
from tests.fuzz.case import ACCEPT, ANY, SAME, Case, Kind, Refused, Wrong
from tests.fuzz.mutate import NUMBERS, some_bytes, some_json
from tests.fuzz.programs import ODD, files_of, folder, unpack

CLASSES, SAMPLES, ENTRIES = 6, 4, 3
TOP = {"all": CLASSES, "top": 2}
DIGEST, SKETCH = 16, 16 * SAMPLES  # bytes of an entry's digest, and of what it knows of the images
FILE, ABOUT = "epoch0.bin", "cache.json"
KNOWN = {"format": 2, "num_classes": 2**62, "top": -1, "teacher": None, "seed": False}


def _cache(path: Path, seed: str) -> TeacherCache:
    world = World(device=torch.device("cpu"))
    return TeacherCache(path, {"teacher": "toy", "seed": 0, "data": {"mixup": 0.8}}, CLASSES, TOP[seed], world)


@cache
def _truth(number: int) -> tuple[Tensor, Tensor]:
    """Images of a micro-batch, and a teacher's logits."""
    generator = torch.Generator().manual_seed(number)
    images, logits = (torch.randn(SAMPLES, *shape, generator=generator) for shape in ((3, 4, 4), (CLASSES,)))
    return images, logits


@cache
def _made(seed: str) -> tuple[TeacherCache, dict[str, bytes]]:
    with tempfile.TemporaryDirectory() as name:
        made = _cache(Path(name), seed)
        for number in range(ENTRIES):
            images, logits = _truth(number)
            made.find(0, number, images)
            made.keep(logits)
        made.close()
        return made, {file: Path(name, file).read_bytes() for file in (ABOUT, FILE)}


def seeds() -> Mapping[str, bytes]:
    return {seed: folder(_made(seed)[1]) for seed in TOP}


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    seed = rng.choice(list(seeds))
    files, right = files_of(seeds[seed]), SAME
    match rng.randrange(8):
        case 0 | 1:
            files[FILE] = some_bytes(rng, files[FILE])
        case 2:
            files[ABOUT] = some_json(rng, files[ABOUT], KNOWN)
        case 3:
            name = rng.choice((FILE, ABOUT, "epoch1.bin", "x"))
            files[name] = rng.choice((*ODD, some_bytes(rng, files[FILE])))
            del files[rng.choice([*files])]
        case 4:
            parts = _entries(files[FILE])
            rng.shuffle(parts)
            files[FILE] = b"".join(parts[: rng.randrange(ENTRIES + 1)])
        case _:
            right, parts = ANY, _entries(files[FILE])
            at = rng.randrange(ENTRIES)
            content = _changed(rng, parts[rng.choice((at, at, 0))][DIGEST:], seed)
            parts[at] = _made(seed)[0]._digest(0, at, content) + content
            files[FILE] = b"".join(parts)
    return Case(folder(files), seed, right)


def _entries(data: bytes) -> list[bytes]:
    size = len(data) // ENTRIES
    return [data[at : at + size] for at in range(0, len(data), size)]


def _changed(rng: Random, content: bytes, seed: str) -> bytes:
    """Numbers of an entry, which its digest is of, changed."""
    changed, wide = bytearray(content), SKETCH + 4 * SAMPLES * TOP[seed]
    for _ in range(rng.choice((1, 1, 2, 8))):
        if wide < len(content) and rng.random() < 0.5:
            at = rng.randrange(wide, len(content), 2)
            other = content[at - 2 : at] if at > wide else content[at + 2 : at + 4]
            changed[at : at + 2] = rng.choice((other, b"\0\0", b"\6\0", b"\xff\xff", rng.randbytes(2)))
        else:
            at = rng.randrange(0, wide, 4)
            with np.errstate(over="ignore"):
                number = np.float32(float(rng.choice(NUMBERS)))
            changed[at : at + 4] = rng.choice((number.tobytes(), rng.randbytes(4), content[at - 4 : at] or bytes(4)))
    return bytes(changed) if rng.random() < 0.8 else some_bytes(rng, bytes(changed))


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    unpack(case.data, Path("d"))
    try:
        found = _cache(Path("d"), case.seed)
        for number in range(ENTRIES):
            images, logits = _truth(number)
            answers = found.find(0, number, images)
            if new := answers is None:
                found.keep(logits)
                answers = found.find(0, number, images)
            _hold_together(answers)
            if (new or case.right in (SAME, ACCEPT)) and not _are(answers, logits, TOP[case.seed]):
                raise Wrong(f"answers to micro-batch {number} that the teacher has not given")
        found.close()
    except UserError as error:
        raise Refused(str(error)) from None
    return f"{found.found} of {ENTRIES} were there"


def _hold_together(answers: Answers) -> None:
    probs = answers.log_probs.exp()
    if answers.classes is not None and any(len({*row}) < len(row) for row in answers.classes.tolist()):
        raise Wrong(f"a class twice: {answers.classes.tolist()}")
    if not (probs.sum(1) < 1.01).all() or not all(
        part.isfinite() for part in divergence_of_top(torch.zeros(SAMPLES, CLASSES), answers)
    ):
        raise Wrong(f"no probabilities: {probs.tolist()}")


def _are(answers: Answers, logits: Tensor, top: int) -> bool:
    probs = torch.log_softmax(logits, 1)
    if answers.classes is None:
        return torch.equal(answers.log_probs, probs)
    known, classes = probs.topk(top, 1)
    return torch.equal(answers.log_probs, known) and torch.equal(answers.classes, classes)


KIND = Kind(seeds, mutate, check, weight=8, batch=40)
