"""rmeeto: faster Vision Mamba by merging tokens and re-training for minutes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmeeto.merge import MergeConfig
    from rmeeto.patch import apply, remove

__version__ = "0.1.0"
__all__ = ["MergeConfig", "__version__", "apply", "remove"]

# Imported on first use, so that `python -m rmeeto.doctor` runs where torch or timm are missing or broken.
_HOMES = {"MergeConfig": "rmeeto.merge", "apply": "rmeeto.patch", "remove": "rmeeto.patch"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
