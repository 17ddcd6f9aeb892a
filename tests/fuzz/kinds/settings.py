"""A run's config.json as the starting point of another run (`--config`), of either task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import image_task.main
import video_task.main
from image_task.config import Config
from rmeeto.merge import MergeConfig
from tests.fuzz.case import Case, Kind, Wrong
from tests.fuzz.mutate import OUTSIDE, URL, some_json
from tests.fuzz.programs import try_main
from video_task.config import VideoConfig

MAINS = {"image": image_task.main.main, "video": video_task.main.main}
KNOWN = {
    "r": 4, "model": "vim_nano_patch2_16", "data_set": "IMNET", "data_path": OUTSIDE, "model_pth": OUTSIDE,
    "amp": "bf16",
    "teacher": "vim_tiny_patch16_224", "teacher_pth": URL, "name": "../../x", "smoke": True, "eval": True,
    "resume": True,
    "input_size": 2147483648, "num_workers": 10**9, "metric": "X", "distance": "l2", "shuffle": "random", "interval": 0,
    "betas": [0.9, 0.999, 1], "cutmix_minmax": [0.2, 0.8], "epochs": 0, "lr": 1e400, "device": "cuda", "window": [2, 2],
    "matching": "exact", "rule": "bipartite", "keep_order": "no", "odd": "l2", "aa": "rand-m99",
    "train_interpolation": "x",
}  # fmt: skip
# What a dry run changes by design: a run that starts from another one's settings has a folder of its own.
OWN = {"run": {"resume", "name"}}


def _text(config: Any) -> bytes:
    return json.dumps(config.to_dict(), indent=2).encode()


def seeds() -> Mapping[str, bytes]:
    nano = {"model": "vim_nano_patch2_16"}
    plain = Config.from_dict({"model": nano, "merge": MergeConfig(r=2).to_dict()})
    training = Config.from_dict({"model": nano, "data": {"batch_size": 8, "num_workers": 0}, "run": {"seed": 3}})
    video = VideoConfig.from_dict({"model": {"model": "videomamba_video_nano_patch4_32"}, "data": {"num_frames": 4}})
    return {"image": _text(plain), "image training": _text(training), "video": _text(video)}


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    seed = rng.choice(list(seeds))
    return Case(some_json(rng, seeds[seed], KNOWN), seed)


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    Path("c.json").write_bytes(case.data)
    printed = try_main(MAINS[case.seed.split()[0]], ["--config", "c.json", "--dry_run"])
    found, given = json.loads(printed, parse_constant=_refuse), json.loads(case.data, parse_constant=_refuse)
    if found["run"]["smoke"]:
        return "a smoke run"
    for section, values in given.items():
        for name, value in (values or {}).items():
            got = (found[section] or {}).get(name)
            if name not in OWN.get(section, ()) and got != value and not (section, name) == ("model", "model"):
                raise Wrong(f"{section}.{name} is {value!r} in the file and {got!r} in the run")
    return "accepted"


def _refuse(constant: str) -> None:
    raise Wrong(f"{constant} was taken for JSON")


# An unknown model lists all; the weights that a settings file names are looked into, as those of a command line.
KIND = Kind(seeds, mutate, check, weight=6, lines=30, may_read=True)
