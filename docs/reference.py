"""Writes the tables of reference.md anew: `python docs/reference.py`. A test compares them with the code."""

from __future__ import annotations

import ast
import dataclasses
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().with_name("reference.md")
sys.path.insert(0, str(FILE.parents[1]))

from image_task.config import Config  # noqa: E402
from image_task.flags import COMMAND as IMAGE_COMMAND  # noqa: E402
from image_task.models import ALIASES as IMAGE_ALIASES  # noqa: E402
from rmeeto.cli.flags import documented  # noqa: E402
from rmeeto.merge import MergeConfig  # noqa: E402
from rmeeto.merge.released import RELEASED  # noqa: E402
from video_task.config import VideoConfig  # noqa: E402
from video_task.flags import COMMAND as VIDEO_COMMAND  # noqa: E402
from video_task.models import ALIASES as VIDEO_ALIASES  # noqa: E402


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def table(*head: str) -> list[str]:
    return [row(*head), row(*["---"] * len(head))]


def value(default: Any) -> str:
    if default is None or default == "":
        return "none"
    return f"`{' '.join(map(str, default)) if isinstance(default, tuple) else default}`"


def merging() -> list[str]:
    """The merge settings: flag, released names, default, meaning."""
    texts, lines = documented(MergeConfig), table("`merge.`", "released names", "default", "what it is")
    for field in dataclasses.fields(MergeConfig):
        released = [f"`--{name}`" for name, of in RELEASED.items() if of.field == field.name != name]
        lines.append(row(f"`--{field.name}`", ", ".join(released), value(field.default), texts[field.name]))
    return lines


def section(name: str) -> list[str]:
    """The settings of a section in both tasks: flag, other names, defaults, meaning."""
    image, video = (
        {field.name: field for field in dataclasses.fields(config.sections()[name])} for config in (Config, VideoConfig)
    )
    lines = table(f"`{name}.`", "other names", "images", "clips", "what it is")
    for field in (image | video).values():
        both = [fields.get(field.name) for fields in (image, video)]
        defaults = ["-" if one is None else value(one.default) for one in both]
        names = aliases(*both)
        star = " *" if field.metadata["harmless"] else ""
        text = (both[0] or field).metadata["help"]
        if both[0] and both[1] and both[1].metadata["help"] != text:
            text += f" (clips: {both[1].metadata['help']})"
        lines.append(row(f"`--{field.name}`{star}", names, *defaults, text))
    return lines


def aliases(*both: dataclasses.Field | None) -> str:
    """A setting's other names; of those that one task alone has, which."""
    of = {task: field.metadata["aliases"] for task, field in zip(("images", "clips"), both) if field is not None}
    said = []
    for alias in dict.fromkeys(alias for names in of.values() for alias in names):
        there = [task for task, names in of.items() if alias in names]
        said.append(f"`--{alias}`" + (f" ({there[0]})" if len(there) < len(of) else ""))
    return ", ".join(said)


def commands() -> list[str]:
    """The commands: of Python, of an installation, and what each does."""
    root, lines = FILE.parents[1], table("`python -m`", "installed", "what it does")
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    installed = {target: name for name, target in scripts.items()}
    for package in ("image_task", "video_task", "rmeeto"):
        for path in sorted((root / package).glob("*.py")):
            text = path.read_text()
            if path.stem == "__main__" or 'if __name__ == "__main__"' not in text:
                continue
            own = f"{package}.{path.stem}:command" if package == "rmeeto" else f"{package}.__main__:{path.stem}"
            name = f"`{installed[own]}`" if own in installed else ""
            said = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0].partition(": `")[0].rstrip(".")
            lines.append(row(f"`{package}.{path.stem}`", name, said))
    return lines


def names() -> list[str]:
    """The released code's names of the models."""
    lines = table("released name", "ours", "what it fixes")
    for alias, released in {**IMAGE_ALIASES, **VIDEO_ALIASES}.items():
        fixed = ["never merges"] * released.dense + ["shuffles first"] * released.shuffles
        fixed += [] if released.ordered else ["without `--if_order` the tokens lose their order"]
        lines.append(row(f"`{alias}`", f"`{released.model}`", "; ".join([*fixed, released.note]).strip("; ")))
    return lines


def ignored() -> list[str]:
    """Flags of other code that are taken and named, or refused."""
    lines = table("flag", "images", "clips")
    commands = (IMAGE_COMMAND, VIDEO_COMMAND)
    for name in dict.fromkeys(flag for command in commands for flag in (*command.ignored, *command.refused)):
        said = []
        for command in commands:
            if name in command.refused:
                said.append(f"refused: {command.refused[name]}")
            else:
                said.append(command.ignored[name].reason if name in command.ignored else "unknown")
        lines.append(row(f"`--{name}`", *said))
    return lines


def reference() -> str:
    """The document with its tables as they have to be."""
    tables = {"commands": commands, "merge": merging, "names": names, "ignored": ignored}
    tables |= {name: partial(section, name) for name in Config.sections()}
    text = FILE.read_text()
    for name, table_of in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        text = before + start + "\n".join(table_of()) + "\n" + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    FILE.write_text(reference())
