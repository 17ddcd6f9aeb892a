"""Mutators of bytes, texts and JSON, and the values that have been trouble before."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

# Seen from the run's folder: what lies beside it, and an address where `runner` listens.
OUTSIDE = "../outside/secret.json"
ABSOLUTE = "/proc/self/cwd/../outside/secret.json"
HOST, PORT = "127.77.77.77", 47777
# Where this run alone listens, for the fault that connects: others may run on the machine, and listen to HOST too.
OWN = "127.78.{}.{}".format(*divmod(int(os.environ.setdefault("RMEETO_FUZZ_RUN", str(os.getpid()))) % 2**14, 128))
URL = f"http://{HOST}:{PORT}/model.safetensors"

TEXTS = (
    "", " ", "x", ".", "..", "/", "a/b", "-1", "none", "nan", "inf", "-inf", "1e999", "1e-320", "0x10", "1_000", "٣",
    "\x1b]0;title\x07", "a\nerror: b", "\u202eabc", "\ud800", "ü", "A" * 300, "9" * 5000, OUTSIDE, ABSOLUTE, URL,
    "hf_hub:owner/name", "file:///etc/passwd", "$(touch owned)", "`touch owned`", "%s%n", "\0",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 16, 255, 256, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**20,
    -(2**31), 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("inf"), float("nan"),
)  # fmt: skip


def some_bytes(rng: Random, data: bytes, times: int = 0) -> bytes:
    """Flip, overwrite, insert, delete, repeat, cut or extend."""
    changed = bytearray(data)
    for _ in range(times or rng.choice((1, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(changed) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 64, 512, 4096))
        match rng.randrange(9):
            case 0 | 1:
                if at < len(changed):
                    changed[at] ^= 1 << rng.randrange(8)
            case 2:
                changed[at : at + size] = rng.randbytes(len(changed[at : at + size]))
            case 3:
                changed[at : at + size] = rng.choice((b"\0", b"\xff", b" ", b"0")) * len(changed[at : at + size])
            case 4:
                changed[at:at] = rng.randbytes(size)
            case 5:
                del changed[at : at + size]
            case 6:
                changed[at:at] = changed[max(0, at - size) : at]
            case 7:
                order = rng.choice(("little", "big"))
                value = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(data), 10**6))
                width = rng.choice((2, 4, 8))
                changed[at : at + width] = (value % 256**width).to_bytes(width, order)
            case 8:
                if rng.random() < 0.5:
                    del changed[at:]
                else:
                    changed += rng.choice((bytes(size), rng.randbytes(size), bytes(changed[:size])))
    return bytes(changed)


def some_text(rng: Random, known: Sequence[str] = ()) -> str:
    """A text that is odd, one of those that are known, or one of them with a change."""
    if known and rng.random() < 0.5:
        text = rng.choice(known)
        if rng.random() < 0.5:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(TEXTS)[:100] + text[at + rng.randrange(3) :]
        return text
    return rng.choice(TEXTS) if rng.random() < 0.6 else str(rng.choice(NUMBERS))


def some_value(rng: Random, known: Sequence[str] = ()) -> Any:
    """A JSON value of any type."""
    match rng.randrange(8):
        case 0:
            return rng.choice((None, True, False))
        case 1 | 2 | 3:
            return rng.choice(NUMBERS)
        case 4 | 5:
            return some_text(rng, known)
        case 6:
            return [some_value(rng, known) for _ in range(rng.randrange(4))]
    return {some_text(rng, known): some_value(rng, known) for _ in range(rng.randrange(3))}


def some_json(rng: Random, text: bytes, known: Mapping[str, Any] | None = None) -> bytes:
    """A JSON text with one to three values, names or characters changed.

    Args:
        known: names and values that may be added to its objects.
    """
    if rng.random() < 0.15:
        return some_bytes(rng, text)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):  # changed before
        return some_bytes(rng, text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _changed(rng, tree, known or {})
    written = json.dumps(tree, ensure_ascii=rng.random() < 0.8, indent=rng.choice((None, 2)))
    raw = written.encode(errors="surrogatepass")
    match rng.randrange(40):
        case 0:
            return b"\xef\xbb\xbf" + raw
        case 1:
            return written.encode("utf-16", "surrogatepass")
        case 2:
            return raw.replace(b"1", rng.choice((b"1" * 5000, b"1e999", b"NaN", b"-Infinity")), 1)
        case 3:
            depth = rng.choice((10, 1000, 10**5))
            return b"[" * depth + raw + b"]" * depth
        case 4:
            return raw.replace(b"{", b'{"a":' * rng.choice((900, 10**5)) + b"{", 1)
    return raw


def _changed(rng: Random, tree: Any, known: Mapping[str, Any]) -> Any:
    places = list(_places(tree))
    if not places or rng.random() < 0.03:
        return some_value(rng, [*known])
    parent, key = rng.choice(places)
    match rng.randrange(6):
        case 0 | 1:
            parent[key] = some_value(rng, [*known])
        case 2:
            other, at = rng.choice(places)
            parent[key] = copy.deepcopy(other[at])
        case 3:
            del parent[key]
        case 4:
            if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(rng.choice((parent[key], some_value(rng)))))
            else:
                parent[some_text(rng, [*parent, *known])] = parent.pop(key)
        case 5:
            if isinstance(parent, dict) and known:
                name = rng.choice([*known])
                parent[name] = known[name] if rng.random() < 0.7 else some_value(rng, [*known])
            else:
                parent[key] = [parent[key]] * rng.choice((1, 2, 50))
    return tree


def _places(tree: Any) -> Any:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


def damage(rng: Random, data: bytes, start: int = 0, end: int | None = None) -> bytes:
    """One damage in one place: a bit, a short run of bytes that is blank, missing or added, or a cut.

    No run is as long as a whole record, which a damage may take away without a trace.
    """
    end = len(data) if end is None else end
    at, size = rng.randrange(start, end), rng.choice((1, 3, 17, 100, 300))
    stop = min(at + size, end)
    match rng.randrange(6):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1 | 2:
            return data[:at] + rng.choice((b"\0", b"\xff")) * (stop - at) + data[stop:]
        case 3:
            return data[:at] + data[stop:]
        case 4:
            return data[:at] + rng.randbytes(size) + data[at:]
    return data[:at]
