"""Command-line flags made from config dataclasses: one a field, `-` and `_` the same, no abbreviations."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from rmeeto.cli.parser import home
from rmeeto.errors import UserError
from rmeeto.settings import describe

_TRUE, _FALSE, _NONE = ("true", "1", "yes", "on"), ("false", "0", "no", "off"), ("", "none")


@dataclass(frozen=True)
class Flag:
    """A flag that is not a field of its own name.

    Args:
        section, field: where its value goes.
        convert: reads it.
        help: of the flag.
        switch: whether it may stand alone, for True.
    """

    section: str
    field: str
    convert: Callable[[str], Any]
    help: str
    switch: bool = False


@dataclass(frozen=True)
class Ignored:
    """A flag of other code that is accepted without effect, and why; `only`: the values that are."""

    reason: str
    only: tuple[str, ...] = ()


@dataclass
class Given:
    """What a command line says of one section: values by field, and the flags that they were written as."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    flags: dict[str, str] = dataclasses.field(default_factory=dict)

    def over(self, section: Any) -> Any:
        """A section with these values in place of its own."""
        return dataclasses.replace(section, **self.values)


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
            formatter_class=_Formatter,
            usage=f"{prog} [--flag value ...]",
            description=description,
            epilog="In a flag's name, - and _ are the same. A switch stands alone or takes True or False.",
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self._ignored = ignored
        for name in ignored:
            self.add_argument(f"--{name}", dest=f"ignored.{name}", nargs="*", help=argparse.SUPPRESS)

    def add_positional(self, name: str, help: str) -> None:
        """A word without a flag, which goes to the section "command"."""
        self.usage = f"{self.prog} {name.upper()} [--flag value ...]"
        self.add_argument(f"command.{name}", metavar=name.upper(), nargs="?", help=help)

    def add_section(
        self,
        section: str,
        config_class: type,
        title: str,
        aliases: Mapping[str, Sequence[str]] | None = None,
        example: str = "",
        left_out: Collection[str] = (),
    ) -> None:
        """One flag for each field of a dataclass.

        Args:
            section: where the values go.
            config_class: its fields are `setting`s, or described in its docstring.
            title: of the flags in the help.
            aliases: more names by field.
            example: of its flags in use.
            left_out: fields that have no flag here.
        """
        group = self.add_argument_group(title, example and f"for example {example}")
        hints, texts = get_type_hints(config_class), documented(config_class)
        for field in dataclasses.fields(config_class):
            if field.name in left_out:
                continue
            hint, more = hints[field.name], dict[str, Any]()
            other = (*field.metadata.get("aliases", ()), *(aliases or {}).get(field.name, ()))
            names, dest = [f"--{name}" for name in (field.name, *other)], f"{section}.{field.name}"
            text = field.metadata.get("help") or texts.get(field.name, "")
            if field.default not in (None, ""):
                text += f" (default: {field.default})"
            if hint is bool:
                more = {"nargs": "?", "const": True}
                negative = [f"--no_{name[2:]}" for name in names]
                group.add_argument(*negative, dest=dest, action="store_false", help=argparse.SUPPRESS)
            elif any(get_origin(kind) is tuple for kind in (hint, *get_args(hint))):
                single = any(kind in (int, float) for kind in get_args(hint))
                more = {"nargs": "+", "action": functools.partial(_Numbers, single=single)}
            group.add_argument(
                *names,
                dest=dest,
                type=converter(hint),
                metavar=field.name.upper(),
                help=text.replace("%", "%%"),
                **more,
            )

    def add_flags(self, flags: Mapping[str, Flag], title: str) -> None:
        """Flags with a name, a destination and a reader of their own."""
        group = self.add_argument_group(title)
        for name, flag in flags.items():
            alone: dict[str, Any] = {"nargs": "?", "const": "True"} if flag.switch else {}
            group.add_argument(
                f"--{name}",
                dest=f"{flag.section}.{flag.field}",
                type=flag.convert,
                metavar=name.upper(),
                help=flag.help,
                **alone,
            )

    def read(self, argv: Sequence[str]) -> tuple[defaultdict[str, Given], list[str]]:
        """Parse a command line.

        Returns:
            What is given, by section; a line on each flag that is ignored, or given more than once.

        Raises:
            UserError: an unknown flag or a value that cannot be read.
        """
        for token in argv:
            if not token.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in token):
                self.error(f"the argument {token!r} is no text in UTF-8; give another name.")
        argv = [normalise(token) for token in argv]
        values, extra = self.parse_known_args(argv)
        if extra:
            self.error(self._unknown(extra[0]))
        given: defaultdict[str, Given] = defaultdict(Given)
        notices = []
        for dest, value in vars(values).items():
            section, _, name = dest.partition(".")
            if section == "ignored":
                notices.append(self._ignore(name, value))
            else:
                given[section].values[name] = value
        names = {option: action.dest for option, action in self._option_string_actions.items()}
        flags = [flag for flag in (token.split("=")[0] for token in argv) if flag in names]
        for flag in flags:
            section, _, name = names[flag].partition(".")
            given[section].flags[name] = flag
        for dest, count in Counter(names[flag] for flag in flags).items():
            section, _, name = dest.partition(".")
            if count > 1:
                flag = given[section].flags[name]
                notices.append(f"{flag} is the last of {count} flags for one setting, and counts")
        return given, notices

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


class _Formatter(argparse.HelpFormatter):
    """All names of a flag, then once what it takes."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        return names if action.nargs == 0 else f"{names} {self._format_args(action, str(action.metavar))}"


class _Numbers(argparse.Action):
    """One value from several numbers, apart or with commas between; `single`: one alone is no tuple."""

    def __init__(self, *args: Any, single: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._single = single

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        numbers = tuple(number for part in values for number in part)
        alone = numbers == (None,) or (self._single and len(numbers) == 1)
        setattr(namespace, self.dest, numbers[0] if alone else numbers)


def normalise(token: str) -> str:
    """A command-line token with the `-` of a flag's name turned into `_`, and ~/ into the home folder.

    Few shells do the latter within ``--output_dir=~/runs``, and none within quotes.
    """
    if not token.startswith("--"):
        return home(token)
    name, equals, value = token.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + home(value)


def parse_bool(text: str) -> bool:
    """True or False as users write them."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"got {text!r}; expected True or False, or the flag alone.")


def converter(hint: Any) -> Callable[[str], Any]:
    """A reader of command-line values for a field's type: bool, int, float or str, numbers, or one of them or None.

    Numbers are read into a list of what one word holds: "5", "5,5,6".
    """
    if hint is bool:
        return parse_bool
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    optional = type(None) in get_args(hint)
    listed = [kind for kind in (hint, *kinds) if get_origin(kind) is tuple]
    if listed:
        whole = int in kinds or any(int in get_args(kind) for kind in listed)
        return functools.partial(_read_numbers, whole=whole, optional=optional)
    what = describe(kinds[0]) + (" or none" if optional else "")
    convert = parse_bool if kinds[0] is bool else kinds[0] if kinds[0] in (int, float) else str

    def read(text: str) -> Any:
        if optional and text.lower() in _NONE:
            return None
        try:
            return convert(text)
        except (ValueError, argparse.ArgumentTypeError):
            raise argparse.ArgumentTypeError(f"got {text!r}; expected {what}.") from None

    return read


def _read_numbers(text: str, whole: bool, optional: bool) -> list[int | float | None]:
    if optional and text.lower() in _NONE:
        return [None]
    try:
        return [int(n) if whole and re.fullmatch(r"[+-]?\d+", n) else float(n) for n in text.split(",")]
    except ValueError:
        what = "numbers with commas between" + (", or none" if optional else "")
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a number or {what}.") from None


def read_literal(text: str) -> bool | int | str:
    """A whole number, a truth value or a text, whichever it looks like."""
    try:
        return int(text)
    except ValueError:
        return text.lower() in _TRUE if text.lower() in (*_TRUE, *_FALSE) else text


def in_flags(message: str, sections: Mapping[str, type], written: Mapping[str, str] | None = None) -> str:
    """A message of the library, which names sections and fields, as the command line says it.

    `OptimConfig: lr=-1; expected ...` becomes `--lr -1; expected ...`, and `run.name` becomes `--name`.

    Args:
        sections: their classes.
        written: the flags in use, by field; the others go by their own names.
    """
    fields = {field.name for section in sections.values() for field in dataclasses.fields(section)}

    def flag(match: re.Match[str], end: str = "") -> str:
        name = match["name"]
        return (written or {}).get(name, f"--{name}") + end if name in fields else match[0]

    message = re.sub(r"\b[A-Z]\w*Config: (?=\w+=)", "", message)
    message = re.sub(rf"\b(?:{'|'.join(sections)})\.(?P<name>\w+)\b", flag, message)
    message = re.sub(r"(?<![\w./-])(?P<name>\w+)=(?=\S)", lambda match: flag(match, " "), message)
    return re.sub(r"(--\w+) '([\w./:-]+)'", r"\1 \2", message)


def documented(config_class: type) -> dict[str, str]:
    """What the docstring of a class says about its arguments."""
    arguments = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(config_class) or "", re.M | re.S)
    parts = re.split(r"^ {4}(\w+): ", arguments[1], flags=re.M)[1:] if arguments else []
    texts = [" ".join(text.replace("`", "").split()).rstrip(".") for text in parts[1::2]]
    return dict(zip(parts[::2], texts))
