"""What a compiled kernel's loop is made of, counted in its machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
COUNTED = {  # what a loop may wait for, by the first part of the instruction's name
    "shuffles": ("SHFL",),
    "special": ("MUFU",),
    "spills": ("LDL", "STL"),
    "barriers": ("BAR", "WARPSYNC"),
    "loads": ("LDG",),
    "stores": ("STG",),
    "shared": ("LDS", "STS", "LDSM", "STSM"),
    "products": ("HMMA", "HGMMA", "IMMA"),
}


def dump(cubin: bytes, *flags: str) -> str:
    """What cuobjdump says of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([TOOLS / "cuobjdump", *flags, file.name], capture_output=True, text=True)
    return done.stdout + done.stderr


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack of a thread."""
    text = dump(cubin, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return {"registers": int(found[1]), "stack": int(found[2])}


def instructions(sass: str) -> list[tuple[int, str, str]]:
    """(address, name, operands) of each."""
    return [(int(at, 16), name, rest.strip()) for at, name, rest in _LINE.findall(sass)]


def longest_loop(sass: str) -> dict[str, int]:
    """Counts of the loop with the most instructions that are in no loop inside it: a kernel's loop over tiles."""
    code = instructions(sass)
    ends: dict[int, int] = {}  # of loops, by where they begin
    for at, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name.startswith("BRA") and target and int(target[1], 16) < at:
            ends[int(target[1], 16)] = max(at, ends.get(int(target[1], 16), 0))
    bodies = []
    for start, end in ends.items():
        inner = [(s, e) for s, e in ends.items() if start <= s and e <= end and (s, e) != (start, end)]
        body = [(at, name) for at, name, _ in code if start <= at <= end and name != "NOP"]
        bodies.append([name for at, name in body if not any(s <= at <= e for s, e in inner)])
    names = max(bodies, key=len, default=[])
    kinds = Counter(name.partition(".")[0] for name in names)
    counts = {what: sum(kinds[name] for name in of) for what, of in COUNTED.items()}
    return {"instructions": len(names), **counts}
