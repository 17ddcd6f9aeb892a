"""Settings: dataclass fields that say what they are, the checks of their values, and their plain form."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from rmeeto.errors import UserError


def setting(default: Any, help: str, *aliases: str) -> Any:
    """A dataclass field that is also a flag: its help text and the other names the flag goes by."""
    return dataclasses.field(default=default, metadata={"help": help, "aliases": aliases})


def expect(config: Any, names: Iterable[str], holds: Callable[[Any], bool], expected: str) -> None:
    """Check fields of a section.

    Raises:
        UserError: the first that does not hold: its flag, what it is, what was expected.
    """
    for name in names:
        value = getattr(config, name)
        if not holds(value):
            raise UserError(f"--{name} is {value!r}; expected {expected}.")


def expect_at_least(config: Any, least: int, *names: str) -> None:
    """`expect` numbers of at least ``least``."""
    expect(config, names, lambda value: value >= least, f"at least {least}" if least else "0 or more")


def expect_one_of(config: Any, name: str, *known: Any) -> None:
    """`expect` one of a few values."""
    listed = ", ".join("none" if value is None else str(value) for value in known)
    expect(config, (name,), lambda value: value in known, f"one of {listed}")


def from_plain(config_class: type, values: Mapping[str, Any], section: str) -> Any:
    """A config from its plain form (as JSON holds it: lists for tuples).

    Raises:
        UserError: no section of fields, a field that the class does not have, or a value that it refuses.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{section} is {values!r}; expected its fields, as in a run's config.json.")
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"unknown field {section}.{unknown[0]}; expected some of {', '.join(sorted(known))}.")
    hints = get_type_hints(config_class)
    for name, value in values.items():
        if not _accepts(hints[name], value):
            expected = hints[name].__name__ if isinstance(hints[name], type) else hints[name]
            raise UserError(f"{section}.{name} is {value!r}; expected {expected}.")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return config_class(**plain)
    except ValueError as error:
        raise UserError(str(error)) from None


def _accepts(hint: Any, value: Any) -> bool:
    kinds = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_accepts(kind, value) for kind in kinds)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):
            return False
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        return len(value) == len(kinds) and all(map(_accepts, kinds, value))
    expected = (float, int) if hint is float else hint
    return isinstance(value, expected) and (hint is bool or not isinstance(value, bool))
