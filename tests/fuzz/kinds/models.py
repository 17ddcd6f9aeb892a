"""Model folders: their config.json, beside weights that are whole."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random

import timm
import torch
from safetensors.torch import load as load_bytes

import image_task.models  # noqa: F401  (registers them)
from rmeeto import hub
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from tests.fuzz.case import SAME, Case, Kind, Refused, Wrong
from tests.fuzz.mutate import ABSOLUTE, OUTSIDE, URL, some_bytes, some_json

KNOWN = {
    "pretrained": True, "url": URL, "cache_dir": "../outside", "checkpoint_path": "../outside/model.safetensors",
    "file": ABSOLUTE, "hf_hub_id": "owner/name", "custom_load": True, "pretrained_cfg_overlay": {"url": URL},
    "source": "hf-hub", "state_dict": {}, "img_size": 20000, "num_classes": 11, "embed_dim": 10**6, "depth": 10**7,
    "input_size": [3, 32, 32], "patch_size": 0, "stride": 0, "drop_path_rate": 2, "merge": {"r": 4}, "r": 3,
    "architecture": "eva_giant_patch14_224", "model_args": {"pretrained": True}, "global_pool": "avg",
    "exportable": True,
    "scriptable": True, "pretrained_file": OUTSIDE, "pretrained_strict": False, "features_only": True,
    "vit_giant_patch14_224": 1, "device": "cuda", "dtype": "float8", "in_chans": 1, "bimamba": "v1",
    "shuffle": "random",
}  # fmt: skip


@cache
def _folder(r: int) -> tuple[bytes, bytes]:
    torch.manual_seed(0)
    merge = {"merge": MergeConfig(r=r)} if r else {}
    model = timm.create_model("vim_nano_patch2_16", **merge)
    with tempfile.TemporaryDirectory() as name:
        hub.export(model, Path(name, "m"))
        return tuple((Path(name, "m") / file).read_bytes() for file in (hub.CONFIG, hub.WEIGHTS))


def seeds() -> Mapping[str, bytes]:
    return {"dense": _folder(0)[0], "merged": _folder(2)[0]}


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    seed = rng.choice(list(seeds))
    if rng.random() < 0.1:
        return Case(seeds[seed], seed, SAME, {"weights": rng.randrange(2**32)})
    return Case(some_json(rng, seeds[seed], KNOWN), seed)


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    weights = _folder(0)[1]
    damage = case.more.get("weights")
    Path("m").mkdir()
    Path("m", hub.CONFIG).write_bytes(case.data)
    Path("m", hub.WEIGHTS).write_bytes(weights if damage is None else some_bytes(Random(damage), weights))
    try:
        model = hub.load(Path("m"))
    except UserError as error:
        raise Refused(str(error)) from None
    config = json.loads(case.data)
    arguments = config.get("model_args") or {}
    if damage is None:
        own, given = model.state_dict(), load_bytes(weights)
        if {*own} != {*given} or any(not own[key].equal(given[key]) for key in given):
            raise Wrong("the model has other weights than its file")
    if model.pretrained_cfg["architecture"] != config["architecture"]:
        raise Wrong(f"{config['architecture']} was made a {model.pretrained_cfg['architecture']}")
    if arguments.get("num_classes") not in (None, model.num_classes):
        raise Wrong(f"{arguments['num_classes']} classes were made {model.num_classes}")
    if arguments.get("merge") is not None:
        plain = model.merge_config.to_dict()
        other = {key: plain.get(key) for key, value in arguments["merge"].items() if plain.get(key) != value}
        if other:
            raise Wrong(f"merge settings {arguments['merge']} were made {other}")
    return "loaded"


KIND = Kind(seeds, mutate, check, weight=8)
