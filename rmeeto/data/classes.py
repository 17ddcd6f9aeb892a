"""Classes of a data set: their order, their numbers, which of them a split has, and what is left out of it."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rmeeto.data.pictures import hidden, natural_key, read_file
from rmeeto.errors import UserError, shown

MANY = 100_000  # so many classes are believed of any data set; more only where there are as many samples

logger = logging.getLogger(__name__)


def in_order(names: Iterable[str]) -> list[str]:
    """Class names in natural order, 2 before 10 and letters in either case alike, as timm numbers them.

    It is the order of every data set here whose classes are folders, so that a model means the same by its outputs
    whichever way the same files are read. torchvision sorts them as text, which is another order where numbers of
    unequal length or capitals are among them; a line says so.
    """
    ordered = sorted(set(names), key=lambda name: (natural_key(name), name))
    if ordered != (text := sorted(ordered)):
        odd = next(number for number, pair in enumerate(zip(ordered, text)) if pair[0] != pair[1])
        logger.warning(
            "classes are in natural order, as timm's: number %d is %s, while torchvision sorts text and has %s there",
            *(odd, shown(ordered[odd]), shown(text[odd])),
        )
    return ordered


def check_text(names: Iterable[str], where: str) -> None:
    """Refuse names of classes that no file beside the weights could hold.

    Raises:
        UserError: one that is no UTF-8.
    """
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: the class {shown(name)} has a name that is no UTF-8; rename it.") from None


def numbered(targets: Iterable[int], where: str) -> list[str]:
    """Names for classes that are only numbered, from 0 to the largest number.

    Raises:
        UserError: a number beyond MANY and beyond the number of samples; it is a time or an id rather than a class.
    """
    counts = Counter(targets)
    top = max(counts, default=-1)
    if top >= max(MANY, counts.total()):
        raise UserError(
            f"{where}: class number {top} among {counts.total()} samples; expected numbers from 0 on, fewer than "
            f"{MANY:,} or than the samples."
        )
    return [str(number) for number in range(top + 1)]


def as_labelled(classes: list[str], labels: Sequence[str], where: str) -> list[str]:
    """The classes of a data set in the order in which weights know them, which makes of names the weights' numbers.

    Args:
        classes: of the data, in its own order.
        labels: the weights' names of their outputs, in theirs.
        where: the data.

    Returns:
        `labels` where the data has no others; a line says so if that is another order. `classes` where one of them has
        mere numbers for names, 0, 1, 2, ..., and the other has not, so that nothing can be compared.

    Raises:
        UserError: the data has classes that the weights do not know.
    """
    of_digits = all(name.isdecimal() for name in (*classes, *labels))  # folders 1 to 10 are not outputs 0 to 9
    if classes == list(labels) or not of_digits and (_are_numbers(classes) or _are_numbers(labels)):
        return classes
    odd = [name for name in classes if name not in set(labels)]
    if odd:
        raise UserError(
            f"{where} has {len(odd)} classes that the weights do not know, such as {odd[0]}; they know {len(labels)}, "
            f"such as {labels[0]}. Train a new head for them (model.delete_head), or give the data of these weights."
        )
    if classes != [name for name in labels if name in set(classes)]:
        logger.warning("%s: its classes are in another order than the weights'; they are matched by name", shown(where))
    return list(labels)


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether names are 0, 1, 2, ... in this order."""
    return list(names) == [str(number) for number in range(len(names))]


def check_used(targets: Any, classes: list[str], where: str) -> None:
    """Warn of classes without a sample, and of a single class, which every model gets right."""
    if len(classes) == 1:
        logger.warning("%s has one class, %s: every model is right on it", shown(where), shown(classes[0]))
    absent = sorted(set(range(len(classes))) - set(map(int, targets)))
    if absent:
        logger.warning(
            "%s has no sample of %d of %d classes, such as %s",
            *(shown(where), len(absent), len(classes), shown(classes[absent[0]])),
        )


class LeftOut:
    """Counts the files that a data set does not take; one line names them."""

    def __init__(self) -> None:
        self.reasons: dict[str, list[str]] = {}

    def add(self, name: str, reason: str) -> None:
        self.reasons.setdefault(reason, []).append(name)

    def say(self, where: str) -> None:
        """Log how many there were, of which kind."""
        for reason, names in self.reasons.items():
            example = shown(names[0])
            logger.warning("%s: %d files are left out (%s), such as %s", shown(where), len(names), reason, example)


def subfolders(folder: str | os.PathLike) -> list[str]:
    """Names of the folders in a folder, hidden ones left out, as text sorts them."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not hidden(entry.name))


def files_below(folder: str | os.PathLike) -> Iterator[str]:
    """Paths of the files in a folder and below it, each folder's as text sorts them.

    Hidden files and folders are left out; links are followed, but not to a folder that the way to them leads through.
    """
    found, through = [], {os.fspath(folder): [os.path.realpath(folder)]}
    for root, folders, names in os.walk(folder, followlinks=True):
        way = through.pop(root)
        folders[:] = [name for name in folders if not hidden(name) and not _leads_back(root, name, way)]
        for name in folders:
            path = os.path.join(root, name)
            through[path] = [*way, os.path.realpath(path)]
        found.append((root, names))
    for root, names in sorted(found):
        yield from (os.path.join(root, name) for name in sorted(names) if not hidden(name))


def _leads_back(root: str, name: str, way: Sequence[str]) -> bool:
    path = os.path.join(root, name)
    target = os.path.realpath(path) + "/"
    return os.path.islink(path) and any((passed + "/").startswith(target) for passed in way)


def read_lines(text: str) -> list[str]:
    """Lines of a text that a line end separates; not what else Unicode counts as one, which file names may hold."""
    return re.split(r"\r\n|\r|\n", text)


def read_names(path: str, flag: str = "--class_names") -> list[str]:
    """Class names of a text, one a line.

    Args:
        path: of the text.
        flag: that names it, for errors.

    Raises:
        UserError: it cannot be read, or has a name twice or an empty line.
    """
    try:
        names = [line.strip() for line in read_lines(read_file(path).decode("utf-8-sig"))]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path} cannot be read: {error}; give a text with a class in each line.") from None
    names = names[:-1] if names and not names[-1] else names
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{flag} {path} has a class twice or an empty line; give each class once.")
    return names
