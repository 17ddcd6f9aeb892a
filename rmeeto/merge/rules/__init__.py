"""The merging rules by name. A rule is a function `(metric, r, tokens) -> MergePlan`; yours needs no entry here."""

from __future__ import annotations

from types import MappingProxyType

from rmeeto.imports import find_object, is_import
from rmeeto.merge.rules.adjacent import adjacent
from rmeeto.merge.rules.energy import energy
from rmeeto.merge.rules.exact import exact
from rmeeto.merge.rules.importance import importance
from rmeeto.merge.rules.random import random
from rmeeto.merge.rules.rule import FEATURES, OPTIONS, Rule, RuleFunction, cost, ordered, read_rule
from rmeeto.merge.rules.shift import shift
from rmeeto.merge.rules.window import window

RULES = MappingProxyType(
    {
        "exact": exact,
        "window": window,
        "adjacent": adjacent,
        "energy": energy,
        "importance": importance,
        "shift": shift,
        "random": random,
    }
)

__all__ = [
    "FEATURES",
    "OPTIONS",
    "RULES",
    "Rule",
    "RuleFunction",
    "adjacent",
    "cost",
    "energy",
    "exact",
    "find_rule",
    "importance",
    "ordered",
    "random",
    "shift",
    "window",
]


def find_rule(rule: str | RuleFunction) -> Rule:
    """A rule by its name in `RULES`, as ``package.module:function``, which is imported, or as the function itself.

    Raises:
        ValueError: an unknown name, a module or function that cannot be found, or parameters that are not a rule's.
    """
    if not isinstance(rule, str):
        if not callable(rule):
            raise ValueError(f"MergeConfig: rule={rule!r}; expected a name or a function")
        if type(rule).__hash__ is None:
            raise ValueError(f"MergeConfig: rule={rule!r} has no hash; make it unchangeable (a dataclass: frozen=True)")
        return read_rule(rule, _name_of(rule))
    if rule in RULES:
        return read_rule(RULES[rule], rule)
    if not is_import(rule):
        raise ValueError(f"MergeConfig: rule={rule!r}; expected one of {', '.join(RULES)}, or package.module:function")
    try:
        function = find_object(rule)
    except ValueError as error:
        raise ValueError(f"MergeConfig: rule={error}") from None
    return read_rule(function, rule)


def _name_of(function: RuleFunction) -> str | None:
    """The name that `find_rule` finds a function by, if there is one."""
    known = next((name for name, one in RULES.items() if one is function), None)
    if known is not None:
        return known
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    return f"{module}:{name}" if module and name.isidentifier() else None
