"""Command lines tried in this process, and folders as one input."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.case import Refused, Wrong


def try_main(main: Callable[[Sequence[str]], Any], arguments: Sequence[str], ends: Sequence[int] = (0,)) -> str:
    """What a program prints to stdout.

    Args:
        ends: exit codes of success.

    Raises:
        Refused: it ends with 2 and says why.
        Wrong: another exit code, or control characters in what it prints.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    said, printed = err.getvalue(), out.getvalue()
    odd = [c for c in said + printed if not c.isprintable() and c != "\n"]
    if odd:
        raise Wrong(f"{odd[0]!r} was printed: {said + printed!r:.1000}")
    if code == 2:
        errors = said[said.find("error: ") :] if "error: " in said else ""
        raise Refused(errors)
    if code not in (*ends, None):
        raise Wrong(f"exit code {code}: {said[-500:]}")
    return printed


def folder(files: Mapping[str, Any]) -> bytes:
    """A folder as an input: names, and a file's bytes, or {"link": target}, {"pipe": true}, {"folder": true}."""
    plain = {k: v.decode("latin1") if isinstance(v, bytes) else v for k, v in files.items()}
    return json.dumps(plain).encode()


def files_of(data: bytes) -> dict[str, Any]:
    return {k: v.encode("latin1") if isinstance(v, str) else v for k, v in json.loads(data).items()}


def unpack(data: bytes, into: Path) -> None:
    """Write a `folder` to the disk."""
    for name, content in files_of(data).items():
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif "link" in content:
            path.symlink_to(content["link"])
        elif "pipe" in content:
            os.mkfifo(path)
        else:
            path.mkdir()


ODD = (
    {"link": "../../../outside/secret.json"},
    {"link": "nowhere"},
    {"link": "."},
    {"pipe": True},
    {"folder": True},
    b"",
)
