"""Run folders: what collects results, and what would go on with a run, on one of which something is odd."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random

import torch

import exp_sh.collect
from rmeeto.engine import RunFolder
from rmeeto.engine.dist import World
from rmeeto.engine.record import state_of
from rmeeto.errors import UserError
from tests.fuzz.case import Case, Kind, Refused, Wrong
from tests.fuzz.mutate import some_bytes, some_json, some_text
from tests.fuzz.programs import ODD, files_of, folder, try_main, unpack

RESULTS = Path(__file__).resolve().parents[3] / "image_task" / "exp_sh" / "digits" / "results"
NAMES = ("config.json", "env.json", "result.json", "log.jsonl")
KNOWN = {
    "top1": 1e400,
    "epochs": 1e999,
    "command": ["\x1b[2J"],
    "count": "9" * 10,
    "unreadable": "<!-- /ours -->",
    "ema": {},
}


def seeds() -> Mapping[str, bytes]:
    found = {
        name: [path.read_bytes() for path in (RESULTS / name / file for file in NAMES)]
        for name in ("dense-seed0", "curve-r4")
    }
    return {
        name: folder(
            {f"digits/{name}/{file}": data[:3000] if file == "log.jsonl" else data for file, data in zip(NAMES, parts)}
        )
        for name, parts in found.items()
    }


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    seed = rng.choice(list(seeds))
    files = files_of(seeds[seed])
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(files))
        content = files[name]
        match rng.randrange(8):
            case 0:
                files[name] = rng.choice(ODD)
            case 1:
                del files[name]
            case 2:
                files[f"{name}.tmp"] = rng.choice(ODD)
            case 3:
                odd = some_text(rng, [name]).replace("/", "_").replace("\0", "0").encode(errors="replace")[:200]
                files[f"digits/{odd.decode() or 'x'}/result.json".replace("/../", "/x/").replace("/./", "/x/")] = (
                    content
                )
            case 4 if isinstance(content, bytes):
                files[name] = some_bytes(rng, content)
            case _ if isinstance(content, bytes) and name.endswith("json"):
                files[name] = some_json(rng, content, KNOWN)
    return Case(folder(files), seed)


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    honest = next(name for name in seeds if name != case.seed)
    unpack(case.data, Path("runs"))
    unpack(seeds[honest], Path("runs"))
    printed = try_main(exp_sh.collect.main, ["runs"])
    if f"digits/{honest}: " not in printed:
        raise Wrong(f"the run beside it is not listed any more: {printed}")
    here = Path("here")
    here.mkdir()
    (here / "README.md").write_text("| a | <!-- ours: digits/* --><!-- /ours --> |\n")
    try_main(lambda argv: exp_sh.collect.main(argv, here), ["runs", "--write"])
    text = (here / "README.md").read_text()
    if text.count("<!--") != 2 or len(text.splitlines()) != 1:
        raise Wrong(f"the README's cell became {text!r}")
    json.loads((here / "results.json").read_text(), parse_constant=_refuse)
    return _go_on(
        Path("runs", "digits", case.seed),
        json.loads(files_of(seeds[case.seed])[f"digits/{case.seed}/config.json"]),
    )


def _go_on(path: Path, config: dict) -> str:
    world = World(device=torch.device("cpu"))
    try:
        state = state_of(path, config, resume=True)
        with RunFolder(path, config, world) as run:
            run.start(3, lambda line: line["step"] <= 3, 2)
            run.log("train", {"epoch": 1, "step": 4}, {"loss": 0.5})
    except UserError as error:
        raise Refused(str(error)) from None
    return state


def _refuse(constant: str) -> None:
    raise Wrong(f"{constant} was written")


KIND = Kind(seeds, mutate, check, weight=12, programs=("git",))
