"""Command-line flags made from config dataclasses: one a field, `-` and `_` the same, no abbreviations."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from rmeeto.errors import UserError

_TRUE, _FALSE, _NONE = ("true", "1", "yes", "on"), ("false", "0", "no", "off"), ("", "none")


@dataclass(frozen=True)
class Flag:
    """A flag that is not a field of its own name: where its value goes (`section.field`), how it is read."""

    dest: str
    convert: Callable[[str], Any]
    help: str
    aliases: tuple[str, ...] = ()
    switch: bool = False  # may stand alone for True


@dataclass(frozen=True)
class Ignored:
    """A flag of other code that is accepted without effect, and why; `only`: the values that are."""

    reason: str
    only: tuple[str, ...] = ()


class FlagParser(argparse.ArgumentParser):
    """Reads what was given and nothing else: defaults stay with the dataclasses.

    Args:
        prog: how the command is started.
        description: what it does.
        ignored: flags that are accepted and have no effect.
    """

    def __init__(self, prog: str, description: str, ignored: Mapping[str, Ignored]) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog="In a flag's name, - and _ are the same. A switch stands alone or takes True or False.",
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self._ignored = ignored
        for name in ignored:
            self.add_argument(f"--{name}", dest=f"ignored.{name}", nargs="*", help=argparse.SUPPRESS)

    def add_section(self, section: str, config_class: type, title: str) -> None:
        """One flag for each field of a dataclass whose fields are `setting`s."""
        group = self.add_argument_group(title)
        hints = get_type_hints(config_class)
        for field in dataclasses.fields(config_class):
            hint, more = hints[field.name], dict[str, Any]()
            pairs = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is tuple]
            if pairs:
                more, hint = {"nargs": len(get_args(pairs[0]))}, get_args(pairs[0])[0]
            names = [f"--{name}" for name in (field.name, *field.metadata["aliases"])]
            help = field.metadata["help"]
            if field.default not in (None, ""):
                help += f" (default: {field.default})"
            if hint is bool:
                more = {"nargs": "?", "const": True}
                negative = [f"--no_{name[2:]}" for name in names]
                group.add_argument(
                    *negative, dest=f"{section}.{field.name}", action="store_false", help=argparse.SUPPRESS
                )
            group.add_argument(
                *names,
                dest=f"{section}.{field.name}",
                type=converter(hint),
                metavar=field.name.upper(),
                help=help.replace("%", "%%"),
                **more,
            )

    def add_flags(self, flags: Mapping[str, Flag], title: str) -> None:
        """Flags with a name, a destination and a reader of their own."""
        group = self.add_argument_group(title)
        for name, flag in flags.items():
            names = [f"--{n}" for n in (name, *flag.aliases)]
            alone: dict[str, Any] = {"nargs": "?", "const": "True"} if flag.switch else {}
            group.add_argument(
                *names, dest=flag.dest, type=flag.convert, metavar=name.upper(), help=flag.help, **alone
            )

    def read(self, argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
        """Parse a command line.

        Returns:
            Values by `section.field`; the flags as written, by `section.field`; a line on each flag that is
            ignored, or given more than once.

        Raises:
            UserError: an unknown flag or a value that cannot be read.
        """
        argv = [normalise(token) for token in argv]
        values, extra = self.parse_known_args(argv)
        if extra:
            self.error(self._unknown(extra[0]))
        given, notices = {}, []
        for dest, value in vars(values).items():
            section, _, name = dest.partition(".")
            if section == "ignored":
                notices.append(self._ignore(name, value))
            else:
                given[dest] = value
        names = {option: action.dest for option, action in self._option_string_actions.items()}
        flags = [flag for flag in (token.split("=")[0] for token in argv) if flag in names]
        written = {names[flag]: flag for flag in flags}
        for dest, count in Counter(names[flag] for flag in flags).items():
            if count > 1:
                notices.append(f"{written[dest]} is the last of {count} flags for one setting, and counts")
        return given, written, notices

    def _ignore(self, name: str, value: list[str]) -> str:
        ignored = self._ignored[name]
        if ignored.only and value and value[0].lower() not in ignored.only:
            self.error(f"--{name} {value[0]} is not supported ({ignored.reason}); leave the flag out.")
        return f"--{name} is ignored: {ignored.reason}"

    def _unknown(self, token: str) -> str:
        name = token.split("=")[0]
        if not name.startswith("--"):
            return f"unexpected argument {token!r}; every setting is a flag (--help lists them)."
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        hint = f"did you mean {close[0]}?" if close else "--help lists the known ones."
        return f"unknown flag {name}; {hint}"

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def normalise(token: str) -> str:
    """A command-line token with the `-` of a flag's name turned into `_`."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def parse_bool(text: str) -> bool:
    """True or False as users write them."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"got {text!r}; expected True or False, or the flag alone.")


def converter(hint: Any) -> Callable[[str], Any]:
    """A reader of command-line values for a field's type: bool, int, float or str, or one of them or None."""
    if hint is bool:
        return parse_bool
    kinds = [a for a in get_args(hint) if a is not type(None)] or [hint]
    optional = type(None) in get_args(hint)
    names = {bool: "True or False", int: "an integer", float: "a number", str: "a text"}
    what = names[kinds[0]] + (" or none" if optional else "")
    convert = parse_bool if kinds[0] is bool else kinds[0]

    def read(text: str) -> Any:
        if optional and text.lower() in _NONE:
            return None
        try:
            return convert(text)
        except (ValueError, argparse.ArgumentTypeError):
            raise argparse.ArgumentTypeError(f"got {text!r}; expected {what}.") from None

    return read
