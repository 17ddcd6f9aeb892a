"""Before the first step: whether all processes run the same code with the same settings, weights and data."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rmeeto.engine.dist import World
from rmeeto.engine.record import differences
from rmeeto.errors import UserError

_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("rmeeto", "image_task", "video_task")


def agree(world: World, own: Mapping[str, Any], harmless: Collection[str] = ()) -> None:
    """Compare plain values, in sections or not, with those of the other processes.

    Args:
        own: of this process; the same names everywhere.
        harmless: names, as `section.field`, that may differ.

    Raises:
        UserError: on every process, what differs first and where.
    """
    if world.size == 1:
        return
    first, *others = world.gather(dict(own))
    for rank, other in enumerate(others, 1):
        if found := differences(first, other, harmless, f"{{name}} {{old}} on rank 0, {{new}} on rank {rank}"):
            raise UserError(
                f"the processes were started differently: {'; '.join(found[:3])}. Start all with the same code, "
                "settings, weights and data."
            )


def code_digest() -> str:
    """A digest of the Python files of this project, by name and content."""
    found = hashlib.sha256()
    for package in _CODE:
        for path in sorted((_ROOT / package).rglob("*.py")):
            found.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]
