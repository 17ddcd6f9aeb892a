"""Objects of other modules by name: `package.module:name`."""

from __future__ import annotations

import importlib
from typing import Any


def is_import(name: object) -> bool:
    """Whether a name has the form `package.module:name`."""
    module, colon, member = name.partition(":") if isinstance(name, str) else ("", "", "")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), member])


def find_object(name: str) -> Any:
    """What `package.module:name` names; the module is imported, from Python's path.

    Raises:
        ValueError: no such module or member.
    """
    module, _, member = name.partition(":")
    try:
        return getattr(importlib.import_module(module), member)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{name!r} cannot be imported: {error}; expected package.module:name, the module on Python's path"
        ) from None
