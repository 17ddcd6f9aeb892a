"""Settings: dataclass fields that say all there is to say of them, the checks of their values, their plain form."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from rmeeto.errors import UserError

OWN = object()  # a smoke run keeps the value
_LARGEST = 2**31 - 1  # of whole numbers that have no bound of their own


class Need(NamedTuple):
    """What a setting has no effect without.

    Args:
        holds: of all settings of a run.
        because: why there is no effect where it does not hold.
        fatal: whether to give the setting all the same is an error; else it is noted.
    """

    holds: Callable[[Any], bool]
    because: str
    fatal: bool = False


def setting(
    default: Any,
    help: str,
    *aliases: str,
    within: str = "",
    one_of: Iterable[Any] = (),
    only: str = "",
    needs: Need | tuple[Need, ...] = (),
    smoke: Any = OWN,
    harmless: bool = False,
) -> Any:
    """A dataclass field that is also a flag.

    Args:
        default: its value where nobody says another.
        help: of the flag.
        aliases: other names of the flag.
        within: the interval of its numbers, such as "[0, 1)" or "(0, inf)".
        one_of: its values, where they are few.
        only: "training": an evaluation does not read it.
        needs: what it has no effect without.
        smoke: its value in a smoke run.
        harmless: whether a resumed run may have another: it changes no number.
    """
    needs = (needs,) if isinstance(needs, Need) else needs
    facts = {"within": within, "one_of": tuple(one_of), "only": only, "needs": needs, "smoke": smoke}
    return dataclasses.field(
        default=default, metadata={"help": help, "aliases": aliases, "harmless": harmless, **facts}
    )


class Settings:
    """Base of a section: a frozen dataclass of `setting`s, whose values are checked when it is made.

    Raises:
        UserError: a value of another type, one that is not finite, or one out of its bounds.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, hint = getattr(self, field.name), hints[field.name]
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            within, one_of = field.metadata.get("within"), field.metadata.get("one_of")
            if not accepts(hint, value):
                refuse(self, field.name, describe(hint))
            if one_of and value not in one_of:
                refuse(self, field.name, "one of " + ", ".join("none" if v is None else str(v) for v in one_of))
            whole = float not in _kinds(hint)
            for number in _numbers(value):
                if not (abs(number) <= _LARGEST if isinstance(number, int) else math.isfinite(number)):
                    refuse(self, field.name, _interval(within, whole) or "a finite number")
                if within and not _inside(number, within):
                    refuse(self, field.name, _interval(within, whole))


def refuse(config: Any, name: str, expected: str) -> None:
    """Raise the error of a setting whose value cannot be.

    Raises:
        UserError: the section, the setting, what it is, what was expected.
    """
    raise UserError(f"{type(config).__name__}: {name}={getattr(config, name)!r}; expected {expected}.")


def harmless(sections: Mapping[str, type]) -> set[str]:
    """Settings, as `section.field`, that a resumed run may have otherwise than the run had them."""
    return {
        f"{section}.{field.name}"
        for section, config_class in sections.items()
        for field in dataclasses.fields(config_class)
        if field.metadata.get("harmless")
    }


def smoked(config: Any) -> Any:
    """A section with the values of a smoke run."""
    values = {field.name: field.metadata["smoke"] for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: value for name, value in values.items() if value is not OWN})


def from_plain(config_class: type, values: Mapping[str, Any], section: str) -> Any:
    """A section from its plain form (as JSON holds it: lists for tuples).

    Raises:
        UserError: no section of fields, a field that the class does not have, or a value that it refuses.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{section} is {values!r}; expected its fields, as in a run's config.json.")
    hints = {field.name: get_type_hints(config_class)[field.name] for field in dataclasses.fields(config_class)}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"unknown field {section}.{name}; expected some of {', '.join(sorted(hints))}.")
        if not accepts(hints[name], value):
            raise UserError(f"{section}.{name} is {value!r}; expected {describe(hints[name])}.")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return config_class(**plain)
    except ValueError as error:
        raise UserError(str(error)) from None


def accepts(hint: Any, value: Any) -> bool:
    """Whether a value is of a field's type (lists are tuples, whole numbers are floats, booleans are no numbers)."""
    kinds, origin = get_args(hint), get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(accepts(kind, value) for kind in kinds)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        return len(value) == len(kinds) and all(map(accepts, kinds, value))
    if origin is collections.abc.Callable:
        return callable(value)
    expected = (float, int) if hint is float else hint
    return isinstance(value, expected) and (hint is bool or not isinstance(value, bool))


def describe(hint: Any) -> str:
    """A field's type in words."""
    words = {
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "a text",
        type(None): "none",
    }
    kinds = get_args(hint)
    if get_origin(hint) is tuple:
        several = {int: "whole numbers", str: "texts"}.get(kinds[0], "numbers")
        return several if kinds[-1] is Ellipsis else f"{len(kinds)} {several}"
    return " or ".join(map(describe, kinds)) if kinds else words.get(hint, getattr(hint, "__name__", str(hint)))


def _kinds(hint: Any) -> set[Any]:
    """The plain types that a type is made of."""
    return set().union(*map(_kinds, get_args(hint))) if get_args(hint) else {hint}


def _numbers(value: Any) -> Iterator[int | float]:
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, int | float) and not isinstance(part, bool):
            yield part


def _bounds(within: str) -> tuple[bool, float, float, bool]:
    match = re.fullmatch(r"([\[(])(.+), (.+)([\])])", within)
    assert match, within
    return match[1] == "[", float(match[2]), float(match[3]), match[4] == "]"


def _inside(number: float, within: str) -> bool:
    closed, low, high, closed_above = _bounds(within)
    return (number >= low if closed else number > low) and (number <= high if closed_above else number < high)


def _interval(within: str, whole: bool) -> str:
    """An interval in words."""
    if not within:
        return f"a whole number up to {_LARGEST}" if whole else ""
    closed, low, high, _ = _bounds(within)
    if math.isinf(high) and not whole:
        return f"a finite number {'of at least' if closed else 'above'} {low:g}"
    if whole:
        return f"{low:g} to {int(min(high, _LARGEST))}"
    return f"a number in {within}"
