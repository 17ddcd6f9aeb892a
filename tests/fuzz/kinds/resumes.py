"""Going on with a run from a checkpoint that is damaged, of other state, or beside files that are odd."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

import image_task.main
from rmeeto.engine import checkpoint
from rmeeto.ops import build
from rmeeto.reader import DIGEST, Unreadable
from tests.fuzz.case import ACCEPT, SAME, Case, Kind, Refused, Wrong
from tests.fuzz.mutate import NUMBERS, some_bytes, some_value
from tests.fuzz.programs import try_main

ARGUMENTS = (
    "--model vim_nano_patch2_16 --data-set digits --num_workers 0 --batch-size 16 --epochs 2 --max_train_batches 2 "
    "--max_eval_batches 1 --accumulation 1 --model_ema True --output_dir runs --name r --device cpu"
).split()
KEPT = ("config.json", "env.json", "log.jsonl")


@cache
def _run() -> dict[str, bytes]:
    """The files of a finished run; `last.pt` is that of its first epoch."""
    build.library()  # built and imported here, not in every child
    for name in ("sklearn.datasets", "torch.utils.tensorboard"):
        import_module(name)
    with tempfile.TemporaryDirectory() as name:
        child = os.fork()  # trained in a process of its own: this one is forked from again
        if not child:
            code = 1
            try:
                os.chdir(name)
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
                code = image_task.main.main(ARGUMENTS)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise RuntimeError("the run that is gone on with has failed")
        folder = Path(name, "runs", "r")
        files = {file: (folder / file).read_bytes() for file in (*KEPT, "result.json")}
        return {**files, "last.pt": (folder / "last.previous.pt").read_bytes()}


def seeds() -> Mapping[str, bytes]:
    _run()
    return {"run": b"{}"}


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    number = rng.randrange(2**32)
    match rng.randrange(4):
        case 0:
            return Case(json.dumps({"bytes": number}).encode(), "run", SAME)
        case 1:  # the digest is that of before
            return Case(json.dumps({"state": number, "digest": "old"}).encode(), "run", SAME)
        case 2:
            return Case(json.dumps({"log": number}).encode(), "run", SAME)
    return Case(json.dumps({"state": number, "digest": "new"}).encode(), "run")


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    about, files = json.loads(case.data), _run()
    folder = Path("runs", "r")
    folder.mkdir(parents=True)
    for name in (*KEPT, "last.pt"):
        (folder / name).write_bytes(files[name])
    if "bytes" in about:
        (folder / "last.pt").write_bytes(some_bytes(Random(about["bytes"]), files["last.pt"]))
    if "log" in about:
        (folder / "log.jsonl").write_bytes(some_bytes(Random(about["log"]), files["log.jsonl"]))
    if "state" in about:
        state = checkpoint.load(folder / "last.pt")
        written = _written_digest(files["last.pt"])
        for _ in range(Random(about["state"]).choice((1, 1, 2))):
            _change(Random(about["state"]), state)
        if about["digest"] == "old":
            torch.save({**state, DIGEST: written}, folder / "last.pt")
        else:
            try:
                checkpoint.save(folder / "last.pt", state)
            except Unreadable as error:
                raise Refused(str(error)) from None
    before = {path.name for path in folder.iterdir()}
    try:
        try_main(image_task.main.main, [*ARGUMENTS, "--resume"])
    except Refused:
        if (folder / "result.json").exists():
            raise Wrong("refused, and marked as done") from None
        raise
    result, expected = (json.loads(text) for text in ((folder / "result.json").read_bytes(), files["result.json"]))
    if case.right in (SAME, ACCEPT) and result != expected:
        raise Wrong(f"{result} for {expected}")
    if result["steps"] != expected["steps"] or result["epochs"] != expected["epochs"]:
        raise Wrong(f"{result['steps']} steps of {expected['steps']}")
    for line in (folder / "log.jsonl").read_text().splitlines():
        json.loads(line)
    lost = before - {path.name for path in folder.iterdir()}
    if lost:
        raise Wrong(f"{lost} are gone")
    return "finished"


def _written_digest(data: bytes) -> Any:
    """The digest that a checkpoint was written with."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return torch.load(file.name, weights_only=True)[DIGEST]


def _change(rng: Random, state: dict[str, Any]) -> None:
    places = [*_places(state)]
    parent, key = rng.choice(places)
    value = parent[key]
    match rng.randrange(5):
        case 0 if isinstance(value, Tensor):
            parent[key] = rng.choice((
                torch.zeros(2), value.double(), value.half(), value.long(), value.reshape(-1)[:1], value * float("nan"),
                value.reshape(-1), value.new_zeros(0), value + 1, value.to(torch.complex64),
            ))  # fmt: skip
        case 1:
            other, at = rng.choice(places)
            parent[key] = other[at]
        case 2:
            del parent[key]
        case 3:
            parent[key] = rng.choice(NUMBERS)
        case _:
            parent[key] = some_value(rng)


def _places(tree: Any) -> Any:
    for key in list(tree) if isinstance(tree, dict) else range(min(len(tree), 20)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


KIND = Kind(seeds, mutate, check, weight=2, batch=10, programs=("git",))
