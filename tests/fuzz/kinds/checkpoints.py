"""Checkpoint files: operations of their pickles, records of their zip archives, bytes of both formats."""

from __future__ import annotations

import argparse
import collections
import io
import pathlib
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from functools import cache
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmeeto.errors import UserError
from rmeeto.reader import DIGEST, Unreadable, digest, read
from rmeeto.reader.values import STORAGES, Array, DType, Inert, Name, Storage, find
from rmeeto.weights import load_weights
from tests.fuzz.case import SAME, Case, Kind, Refused, Wrong
from tests.fuzz.mutate import NUMBERS, some_bytes, some_text
from tests.reader.crafted import BUILD, call, items, name, number, tensor, text

W = torch.arange(12.0).reshape(3, 4)
MODEL = {"weight": W, "bias": W[:, 0]}
PLAIN = {str, int, float, bool, bytes, bytearray, complex, type(None), torch.dtype, np.ndarray}
LARGEST = 1 << 28


def _saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _numpy_1() -> bytes:
    """A number and an array as NumPy before 2 wrote them."""
    kind = call("numpy.dtype", text("f8"), number(0), number(1))
    kind += items(number(3), text("<"), b"N", b"N", b"N", number(-1), number(-1), number(0)) + BUILD
    raw = call("_codecs.encode", text("\0\0\0\0\0\0\u00f8?"), text("latin1"))
    one = call("numpy.core.multiarray.scalar", kind, raw)
    start = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), items(number(0)), text(b"b"))
    array = start + items(number(1), items(number(1), number(1)), kind, b"\x89", raw) + BUILD
    pairs = text("lr") + one + b"s" + text("a") + array + b"s" + text("weight") + tensor(4, (2, 2), (2, 1))
    return _packed({"x/data.pkl": b"\x80\x02}" + pairs + b"s.", "x/byteorder": b"little", "x/data/0": bytes(16)})


def seeds() -> Mapping[str, bytes]:
    options = argparse.Namespace(lr=np.float64(1e-3), output_dir=pathlib.PurePosixPath("/runs"), betas=(0.9, 0.95))
    official = {"model": MODEL, "args": options, "epoch": 3, "max_accuracy": 76.1}
    state = {0: {"step": torch.tensor(3.0), "exp_avg": W + 1}}
    groups = [{"lr": 0.1, "params": [0], "betas": (0.9, 0.999), "foreach": None}]
    timm = {
        "epoch": 0,
        "arch": "vit",
        "state_dict": MODEL,
        "optimizer": {"state": state, "param_groups": groups},
    }
    lightning = {
        "state_dict": collections.OrderedDict(MODEL),
        "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 4}}}},
        "lr_schedulers": [{"milestones": collections.Counter({3: 1})}], "pytorch-lightning_version": "2.4.0",
    }  # fmt: skip
    ours = {"model": MODEL, "step": 3, "rates": [0.1, None], "size": tuple(W.shape), "kind": torch.float32}
    ours[DIGEST] = digest(ours)
    return {
        "official": _saved(official),
        "timm": _saved(timm, pickle_protocol=4),
        "lightning": _saved(lightning),
        "numpy 1": _numpy_1(),
        "digest": _saved(ours),
        "before zip": _renumbered(_saved(ours, _use_new_zipfile_serialization=False)),
    }


def _renumbered(data: bytes) -> bytes:
    """The older format names storages by their addresses, which differ from run to run."""
    for place, key in enumerate(sorted(set(re.findall(rb"(?<=[\0\n])\d{12,}", data)))):
        data = data.replace(key, b"%0*d" % (len(key), place))
    return data


def mutate(rng: Random, seeds: Mapping[str, bytes]) -> Case:
    seed = rng.choice(list(seeds))
    data, choice = seeds[seed], rng.random()
    if seed == "before zip":
        if choice < 0.5:
            return Case(some_bytes(rng, data), seed, SAME)
        return Case(b"".join(_operations(rng, part) for part in _legacy_parts(data)), seed)
    if choice < 0.3:
        return Case(some_bytes(rng, data), seed, SAME)
    records = _records(data)
    pickled = next(key for key in records if key.endswith("data.pkl"))
    if choice < 0.75:
        records[pickled] = _operations(rng, records[pickled])
        return Case(_packed(records), seed)
    return _archive(rng, seed, records)


def _records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _packed(records: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for key, content in records.items():
            archive.writestr(zipfile.ZipInfo(key), content, compression)
    return file.getvalue()


def _archive(rng: Random, seed: str, records: dict[str, bytes]) -> Case:
    """Records renamed, removed, swapped, changed, compressed; fields of the list of records changed."""
    key, other = rng.choice(list(records)), rng.choice(list(records))
    match rng.randrange(7):
        case 0:
            records[some_text(rng, list(records)).encode(errors="replace").decode()[:200]] = records.pop(key)
        case 1:
            del records[key]
        case 2:
            records[key], records[other] = records[other], records[key]
        case 3:
            records[key] = some_bytes(rng, records[key])
        case 4:
            kind = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            return Case(_packed(records, kind), seed)
        case 5:
            records[key] = records[key] * rng.choice((2, 3, 100))
        case 6:  # a field of the list: sizes, places, flags, lengths of names
            data = bytearray(_packed(records))
            heads = [at for at in range(len(data)) if data[at : at + 4] in (b"PK\1\2", b"PK\3\4", b"PK\5\6")]
            at = rng.choice(heads) + rng.randrange(4, 46)
            width = rng.choice((1, 2, 4))
            data[at : at + width] = (int(rng.choice(NUMBERS[:18])) % 256**width).to_bytes(width, "little")
            return Case(bytes(data), seed, SAME)
    return Case(_packed(records), seed)


def _legacy_parts(data: bytes) -> list[bytes]:
    file, parts = io.BytesIO(data), []
    for _ in range(5):
        start = file.tell()
        collections.deque(pickletools.genops(file), 0)
        parts.append(data[start : file.tell()])
    return [*parts, data[file.tell() :]]


def _operations(rng: Random, pickled: bytes) -> bytes:
    """A pickle with operations removed, repeated, moved, inserted, or their arguments changed."""
    try:
        places = [place for *_, place in pickletools.genops(pickled)] + [len(pickled)]
    except Exception:  # the part behind the pickles of the older format
        return some_bytes(rng, pickled) if rng.random() < 0.3 else pickled
    parts = [pickled[a:b] for a, b in zip(places, places[1:])]
    for _ in range(rng.choice((1, 1, 2, 4, 10))):
        at, to = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(8):
            case 0:
                del parts[at]
            case 1:
                parts.insert(to, parts[at])
            case 2:
                parts[at], parts[to] = parts[to], parts[at]
            case 3:
                parts[at:at] = parts[min(at, to) : max(at, to)] * rng.choice((1, 1, 2, 50))
            case 4 | 5:
                parts[at] = rng.choice(_PIECES) if rng.random() < 0.7 else _piece(rng)
            case 6:
                parts.insert(at, rng.choice(_PIECES))
            case 7:
                parts[at] = parts[at][:1] + some_bytes(rng, parts[at][1:], 1)
        parts = parts or [b"N"]
    return b"".join(parts)


_NAMES = (
    "os.system", "builtins.eval", "builtins.getattr", "builtins.set", "builtins.bytearray", "builtins.complex",
    "collections.OrderedDict", "collections.Counter", "collections.defaultdict", "argparse.Namespace", "numpy.dtype",
    "numpy.ndarray", "numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct", "_codecs.encode",
    "torch.Size", "torch.device", "torch.FloatStorage", "torch.LongStorage", "torch.storage.UntypedStorage",
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter",
    "torch._tensor._rebuild_from_type_v2", "torch.float8_e4m3fn", "torch.bfloat16", "torch.uint4", "torch.quint8",
    "pathlib.PosixPath", "datetime.datetime", "torch.nn.parameter.Parameter", "evil.\x1b]0;t\x07",
)  # fmt: skip
_OPERATIONS = [op.code.encode("latin1") for op in pickletools.opcodes]
_PIECES = [
    *(code.code.encode("latin1") for code in pickletools.opcodes if code.arg is None),
    *map(name, _NAMES),
    *(number(value) for value in NUMBERS if isinstance(value, int)),
    *(text(value) for value in ("", "storage", "cpu", "0", "f8", "O", "latin1", "<", "\x1b[2J", "model")),
    *(text(value) for value in (b"", bytes(8), b"A" * 64)),
    b"h\0", b"q\0", b"h\1", b"r\xff\xff\xff\xff", b"\x85R", b"N\x85R", b"}R", b"]R", b")R", b")\x81", b"K\1",
    b"G" + bytes(8),
    tensor(4, (4,), (1,)), tensor(4, (4,), (0,)), tensor(4, (2, 2), (2, 1), offset=1), tensor(2**40, (1,), (1,)),
]  # fmt: skip


def _piece(rng: Random) -> bytes:
    if rng.random() < 0.3:
        sizes, steps = (tuple(int(rng.choice(NUMBERS[:20])) for _ in range(rng.randrange(4))) for _ in "ab")
        return tensor(int(rng.choice(NUMBERS[:20])), sizes, steps, rng.choice((0, 1, -1, 2**62)))
    return rng.choice(_OPERATIONS) + rng.choice((b"", b"\1", struct.pack("<I", 2**31), bytes(8), b"1\n", b"a\nb\n"))


@cache
def _print_of(data: bytes) -> str:
    pathlib.Path("seed.pth").write_bytes(data)
    return _print(read("seed.pth"))


def _print(value: Any) -> str:
    """The same text for the same values."""
    if isinstance(value, Inert):
        return f"Inert {_print(value.arguments)} {_print(value.values)}"
    if isinstance(value, Storage | DType | Name | Array):
        return f"{type(value).__name__} {_print([*vars(value).values()])}"
    if isinstance(value, set | frozenset):
        return f"set {sorted(map(_print, value))}"
    if isinstance(value, dict):
        return f"dict {[(_print(key), _print(part)) for key, part in value.items()]}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} {[*map(_print, value)]}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype} {tuple(value.shape)} {digest(torch.as_tensor(value))}"
    return f"{type(value).__name__} {value!r}"


def check(case: Case, seeds: Mapping[str, bytes]) -> str:
    path = pathlib.Path("x.pth")
    path.write_bytes(case.data)
    try:
        content = read(path)
    except Unreadable as error:
        _refused_by_loading(path)
        raise Refused(str(error)) from None
    _plain(content, len(case.data))
    try:
        digest(content, LARGEST)
        found = _print(content)
    except (Unreadable, RecursionError):
        return "more than is looked at: the same values too many times, or too deep"
    if case.seed == "before zip" and DIGEST.encode() not in case.data:
        return "a digest whose name is damaged: nobody knows of it, and the format has no other checksum"
    if case.right == SAME and found != _print_of(seeds[case.seed]):
        raise Wrong("damage was not noticed")
    if case.data[:2] == b"PK" and (expected := _by_python(case.data)) not in (None, found):
        raise Wrong(f"Python's own unpickler gives {expected[:500]}; here {found[:500]}")
    try:
        load_weights(torch.nn.Linear(4, 3), path)
    except UserError:
        pass
    return "accepted"


def _refused_by_loading(path: pathlib.Path) -> None:
    try:
        load_weights(torch.nn.Linear(4, 3), path)
    except UserError:
        return
    raise Wrong("weights were loaded from a file that cannot be read")


def _plain(value: Any, size: int) -> None:
    """Only plain values; no tensor with more numbers than the file has bytes."""
    pending, seen = [value], set()
    while pending:
        part = pending.pop()
        if isinstance(part, dict | list | tuple | set | frozenset):
            if id(part) not in seen:
                seen.add(id(part))
                pending += [*part, *part.values()] if isinstance(part, dict) else part
        elif isinstance(part, Tensor):
            if part.numel() * part.itemsize > size or part.untyped_storage().nbytes() > size:
                raise Wrong(f"a tensor of {tuple(part.shape)} from {size} bytes")
        elif type(part).__module__ == "rmeeto.reader.values":
            pending += list(vars(part).values()) if type(part).__name__ == "Inert" else []
        elif type(part) not in PLAIN:
            raise Wrong(f"a {type(part)} in the result")


class _Python(pickle.Unpickler):
    """Python's own machine, with the names that the reader knows."""

    def __init__(self, records: Mapping[str, bytes]) -> None:
        self.stem, raw = next((k[:-8], v) for k, v in records.items() if k.endswith("/data.pkl"))
        self.records = records
        super().__init__(io.BytesIO(raw))

    def find_class(self, module: str, member: str) -> Any:
        found = find(module, member)
        return found.make if isinstance(found, Name) and found.name not in STORAGES else found

    def persistent_load(self, named: Any) -> Storage:
        _, of, key, _, count = named
        kind, raw = STORAGES[of.name], bytearray(self.records[f"{self.stem}data/{key}"])
        numbers = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        return Storage(numbers if kind is None else numbers.view(kind))


def _by_python(data: bytes) -> str | None:
    """The `_print` of what Python's unpickler makes of it; None where it cannot tell."""
    try:
        records = _records(data)
        raw = next(content for key, content in records.items() if key.endswith("/data.pkl"))
        if {op.name for op, *_ in pickletools.genops(raw)} & {"BUILD", "LONG_BINPUT", "NEWOBJ"}:
            return None
        content = _Python(records).load()
        if isinstance(content, dict):
            content.pop(DIGEST, None)
        digest(content, LARGEST)
        return _print(content)
    except Exception:
        return None


KIND = Kind(seeds, mutate, check, weight=30, batch=40)
