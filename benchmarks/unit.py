"""A unit: what is measured together, and written down when it is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Unit(NamedTuple):
    """Some rows of a result.

    Args:
        name: by which a run that goes on knows that it has them; None: whoever made the unit knows.
        rows: measures them.
        table: of the result that they belong to.
    """

    name: str | None
    rows: Callable[[], Iterable[dict[str, Any]]]
    table: str = "rows"
