"""JSON files that others may have written: read within bounds, written whole."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rmeeto.errors import UserError

DEEPEST = 100  # levels of lists and objects; the deepest that the project writes has six
LARGEST = 16 * 2**20  # bytes of a file; the largest that the project writes has some thousand


def read_json(path: str | Path, kind: type | None = dict, largest: int = LARGEST) -> Any:
    """The content of a JSON file.

    Args:
        path: of a regular file, or a link to one (a pipe or device would never end).
        kind: what the content has to be: dict, list, ...; None for anything.
        largest: bytes that the file may have.

    Raises:
        UserError: it is missing, no regular file, too large, nested too deeply, no strict JSON (`NaN`, `Infinity` and
            numbers beyond a float's range are none), or of another kind.
    """
    try:
        content = parse_json(_read(Path(path), largest))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from None
    if kind is not None and type(content) is not kind:
        raise UserError(
            f"{path} cannot be read as JSON of its kind: it holds a {type(content).__name__}; expected a "
            f"{kind.__name__}."
        )
    return content


def parse_json(text: bytes) -> Any:
    """The content of strict JSON in UTF-8.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        content = json.loads(text.decode(), parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [content]
    for _ in range(DEEPEST):
        level = [part for value in level for part in _parts(value)]
    if level:
        raise ValueError("it is nested too deeply")
    json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair can be parsed but not printed
    return content


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON so that `path` holds the old content or the new one, whole.

    Raises:
        OSError: the disk refuses.
        ValueError: a number that is not finite.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def write_whole(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file so that `path` holds the old content or the new one, whole, and nothing is left of a failure.

    Args:
        write: is given a file to write bytes to.

    Raises:
        OSError: the disk refuses.
    """
    partial = path.with_name(path.name + ".tmp")
    try:
        with open_new(partial) as file:
            write(file)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def open_new(path: Path) -> Any:
    """A file of our own to write bytes to: what stood there is removed, and where it was a link, not followed."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


def open_regular(path: str | Path) -> Any:
    """A file to read bytes from; a pipe or device, which might never end, is refused.

    Raises:
        OSError: there is none.
        ValueError: it is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is no regular file")
    return file


def _read(path: Path, largest: int) -> bytes:
    with open_regular(path) as file:
        text = file.read(largest + 1)
    if len(text) > largest:
        raise ValueError(f"it has more than {largest} bytes")
    return text


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number[:20]} is beyond the range of a float")
    return value
