"""The frame of the commands that use a trained model on files: `predict` and `visualize` of both tasks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rmeeto.cli.chosen import Chosen, choose
from rmeeto.cli.flags import normalise
from rmeeto.cli.outputs import advice, check_output, unwritable
from rmeeto.cli.parser import OneLineParser, run_small
from rmeeto.cli.task import Task
from rmeeto.data.classes import files_below
from rmeeto.errors import UserError, shown
from rmeeto.json_file import write_whole

_LONGEST = 255  # bytes of a file's name
_ROOM = 12  # of them for a number and for .tmp


@dataclass(frozen=True)
class OnFiles:
    """A command of this kind.

    Args:
        prog, description: of the command.
        samples: what it takes, in the plural.
        endings: of such files, by which a folder is searched.
        task: images' or clips'.
        add_flags: adds the command's own flags.
        work: given the model, the files and the own flags; returns the files that could not be used, with reasons.
        random: whether a model that nobody trained will do.
    """

    prog: str
    description: str
    samples: str
    endings: Sequence[str]
    task: Task
    add_flags: Callable[[argparse.ArgumentParser], None]
    work: Callable[[Chosen, list[Path], argparse.Namespace], list[tuple[Path, str]]]
    random: bool = False

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a command line; the exit code of `run_small`, 2 also for a file that could not be used."""
        unusable: list[tuple[Path, str]] = []
        code = run_small(
            lambda: unusable.extend(self.run(sys.argv[1:] if argv is None else argv)),
            self.task.command.in_flags,
        )
        for path, reason in unusable:
            print(f"error: {shown(path)}: {shown(reason)}", file=sys.stderr)
        return 2 if unusable else code

    def run(self, argv: Sequence[str]) -> list[tuple[Path, str]]:
        """What `main` does, its errors raised.

        Raises:
            UserError: a flag, model or file that cannot be used.
        """
        tokens = [normalise(token) for token in argv]
        first = next((i for i, token in enumerate(tokens) if token.startswith("-")), len(tokens))
        options, rest = self.parser().parse_known_args(tokens[first:])
        if not first:
            raise UserError(f"no {self.samples} are given; they come first: {self.prog} FILE_OR_FOLDER ... --flags")
        files = list(self.files(tokens[:first]))
        chosen, notices = choose(self.task, rest, options.class_names)
        if chosen.weights is None and not self.random:
            raise UserError("nobody trained these weights, so every answer is chance; give --model_pth.")
        for notice in notices:
            print(f"note: {shown(notice)}", file=sys.stderr)
        return self.work(chosen, files, options)

    def parser(self) -> argparse.ArgumentParser:
        """The command's own flags."""
        main = self.task.command.prog
        parser = OneLineParser(
            prog=self.prog,
            usage=f"{self.prog} FILE_OR_FOLDER ... [--flag value ...]",
            description=self.description,
            epilog=f"The model is said as to {main}: --model, --model_pth, --r, --input_size, --device, and its other "
            "flags. --model_pth may also be a run folder, a model folder or hf_hub:owner/name, which say the rest.",
            allow_abbrev=False,
        )
        parser.add_argument("--class_names", metavar="FILE", help="a class in each line, in the order of the head")
        self.add_flags(parser)
        return parser

    def files(self, paths: Sequence[str]) -> Iterator[Path]:
        """The files of a command line: those named, and those in folders by their endings.

        Raises:
            UserError: a path that does not exist, or a folder without any.
        """
        for name in paths:
            if not os.path.exists(name):
                raise UserError(f"{name} does not exist; expected {self.samples}, or folders with some.")
            if not os.path.isdir(name):
                yield Path(name)
                continue
            found = [path for path in files_below(name) if path.lower().endswith(tuple(self.endings))]
            if not found:
                raise UserError(f"{name} holds no {self.samples}; known endings are {' '.join(self.endings)}.")
            yield from map(Path, found)


def output_paths(
    files: Iterable[Path], folder: Path, ending: str, overwrite: bool, others: Sequence[str] = ()
) -> list[Path]:
    """A file in a folder for each of some files, by their names; a number tells equal ones apart, none is named twice.

    Args:
        others: suffixes of what is written beside each.

    Raises:
        UserError: one that is there already, or a folder that cannot be made or written to.
    """
    stems = [_within(file.stem, _LONGEST - len(ending) - _ROOM) for file in files]
    first = {stem: place for place, stem in reversed(list(enumerate(stems)))}
    names = set(first)  # a-2 of a second a must not be that of a file a-2
    paths = []
    for place, stem in enumerate(stems):
        name = stem
        if first[stem] != place:
            name = next(free for n in count(2) if (free := f"{stem}-{n}") not in names)
            names.add(name)
        paths.append(folder / f"{name}{ending}")
    written = [path.with_suffix(suffix) for path in paths for suffix in (path.suffix, *others)]
    try:
        there = [path for path in written if path.exists()]
        if there and not overwrite:
            raise UserError(f"{there[0]} is there already; add --overwrite, or give another --output.")
        folder.mkdir(parents=True, exist_ok=True)
        check_output(folder / f"1{ending}", "--output", overwrite=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made: {error.strerror or error}; {advice(error)}.") from None
    return paths


def write_output(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file of `output_paths`, whole or not at all.

    Args:
        write: is given a file to write bytes to.

    Raises:
        UserError: the disk refuses.
    """
    try:
        write_whole(path, write)
    except OSError as error:
        raise UserError(unwritable(path, "--output", error)) from None


def _within(name: str, longest: int) -> str:
    """The beginning of a name, of so many bytes: what lies in a folder may have a name to which no ending fits."""
    return os.fsdecode(os.fsencode(name)[:longest]) if len(os.fsencode(name)) > longest else name


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """The flags of a folder that takes what a command makes."""
    parser.add_argument("--output", type=Path, default=Path(default), help=f"folder (default: {default})")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def record(path: Path, top: list[tuple[int, str, float]], **more: Any) -> dict[str, Any]:
    """An answer as JSON has it."""
    number, name, share = top[0]
    return {
        "file": str(path),
        **more,
        "label": name,
        "index": number,
        "probability": round(share, 6),
        "top": [{"label": n, "index": i, "probability": round(p, 6)} for i, n, p in top],
    }
