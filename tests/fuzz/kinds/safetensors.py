"""Files of safetensors: their headers, and their bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save

from rmeeto.errors import UserError
from rmeeto.reader import Unreadable, read_header, read_safetensors
from rmeeto.weights import load_weights
from tests.fuzz.case import Case, Kind, Refused, Wrong
from tests.fuzz.mutate import some_bytes, some_json

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
KNOWN = {
    "__metadata__": {"format": "pt"}, "shape": [2, 2], "dtype": "F16", "data_offsets": [0, 8],
    "extra": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}, "F8_E4M3": 1, "BOOL": 1, "I64": 1,
}  # fmt: skip


def seeds() -> Mapping[str, bytes]:
    w = torch.arange(12.0).reshape(3, 4)
    many = {f"layers.{n}.weight": w.half() for n in range(20)}
    return {
        "linear": save({"weight": w, "bias": w[:, 0].clone()}, {"format": "pt"}),
        "many": save({**many, "mask": w > 3, "step": torch.tensor(7)}),
    }


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    seed = rng.choice(list(seeds))
    data = seeds[seed]
    if rng.random() < 0.3:
        return Case(some_bytes(rng, data), seed)
    size = 8 + struct.unpack("<Q", data[:8])[0]
    header = some_json(rng, data[8:size].rstrip(), KNOWN)
    header += b" " * (-len(header) % rng.choice((1, 8)))
    said = len(header) if rng.random() < 0.8 else rng.choice((0, 1, len(header) - 1, len(header) + 1, 2**40, 2**64 - 1))
    return Case(struct.pack("<Q", said) + header + data[size:], seed)


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    path = Path("x.safetensors")
    path.write_bytes(case.data)
    model = torch.nn.Linear(4, 3)
    try:
        found, described = read_safetensors(path), read_header(path)
    except Unreadable as error:
        try:
            load_weights(model, path)
        except UserError:
            raise Refused(str(error)) from None
        raise Wrong("weights were loaded from a file that cannot be read") from None
    size = 8 + struct.unpack("<Q", case.data[:8])[0]
    header = json.loads(case.data[8:size])
    header.pop("__metadata__", None)
    if {*found} != {*header} or {*described} != {*header}:
        raise Wrong(f"tensors {sorted(found)} of a header with {sorted(header)}")
    for key, entry in header.items():
        value, (start, end) = found[key], entry["data_offsets"]
        raw = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        stored = case.data[size + start : size + end]
        if entry["dtype"] == "BOOL":  # of which any byte but 0 is made a True
            stored = bytes(map(bool, stored))
        if raw != stored or list(value.shape) != entry["shape"]:
            raise Wrong(f"{key} is not what the file has at {start}")
        if entry["dtype"] in BYTES and value.itemsize != BYTES[entry["dtype"]]:
            raise Wrong(f"{key} is {value.dtype} for {entry['dtype']}")
    try:
        load_weights(model, path)
    except UserError:
        return f"{len(found)} tensors"
    return "loaded"


KIND = Kind(seeds, mutate, check, weight=10, batch=40)
