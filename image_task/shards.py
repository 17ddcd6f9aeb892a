"""Make tar shards of a folder of pictures, for `--data_set tar`: the same pictures and classes in a few large files.

python -m image_task.shards photos --output photos-tar --resize 512
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import signal
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode

from image_task.config import DataConfig
from image_task.datasets import LOADERS, SPLITS
from image_task.sources import Files
from image_task.tars import INDEX, LEAD, Place, Shards, entry, save_index
from image_task.transforms import Resize
from rmeeto.cli.parser import OneLineParser, read_path, run_small
from rmeeto.data.contents import of_files
from rmeeto.data.pictures import Encoded, decode, read_file
from rmeeto.engine.progress import LINE_EVERY, Progress
from rmeeto.errors import UserError, shown
from rmeeto.json_file import read_json, write_json
from rmeeto.lock import lock
from rmeeto.settings import Settings, from_plain, setting

INFO, PLAN, LOCK = "_info.json", "plan.json", "lock"
ALIKE = 8  # of 255, the mean difference of a picture that another version of the encoder has made
NAMED = 10  # pictures of which a message says what is wrong with them


@dataclass(frozen=True)
class Recipe(Settings):
    """How shards are made."""

    resize: int | None = setting(
        None, "pixels of the shorter side of larger pictures; none: files as they are", within="[1, 16384]"
    )
    quality: int = setting(90, "of the JPEGs that those become", within="[1, 100]")
    size: int = setting(1000, "pictures a shard", within="[1, 10000000]")

    def encoded(self, data: bytes) -> bytes:
        """The picture as a shard holds it.

        Raises:
            Exception: it cannot be decoded; of one that need not be, only the header is read.
        """
        picture = Encoded(data)
        if self.resize is None or min(picture.header.size) <= self.resize:
            return data
        file = io.BytesIO()
        smaller: Image.Image = Resize(self.resize, InterpolationMode.LANCZOS)(picture)
        smaller.save(file, "JPEG", quality=self.quality)
        return file.getvalue()


@dataclass(frozen=True)
class Shard:
    """A tar file to be written: its path, and of each picture the file and its name in the tar."""

    path: Path
    pictures: list[tuple[str, str]]

    @property
    def index(self) -> Path:
        """Of this file alone, until that of all is written."""
        return self.path.with_suffix(".npy")

    @property
    def is_done(self) -> bool:
        return self.path.exists() and self.index.exists()

    def write(self, recipe: Recipe) -> int:
        """Write it and its index whole or not at all; pictures that cannot be read are left out.

        Returns:
            How many there were.
        """
        temporary, rows = self.path.with_suffix(".tmp"), []
        with open(temporary, "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                for path, name in self.pictures:
                    try:
                        data = recipe.encoded(read_file(path))
                    except Exception:  # decoders raise nearly anything; `make` says which are missing
                        continue
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    member.gname = f"crc32 {zlib.crc32(data):08x}"  # see `image_task.tars`
                    tar.addfile(member, io.BytesIO(data))
                    block = member.tobuf(tar.format, tar.encoding, tar.errors)[-LEAD:]  # as it was just written
                    offset = tar.offset - -(-len(data) // LEAD) * LEAD
                    rows.append((os.fsencode(name), 0, offset, len(data), zlib.crc32(data, zlib.crc32(block))))
            file.flush()
            os.fsync(file.fileno())
        longest = max((len(name) for name, *_ in rows), default=0)
        np.save(self.index, np.array(rows, entry(longest)))
        os.replace(temporary, self.path)
        return len(self.pictures)


def make(folder: Path, output: Path, recipe: Recipe = Recipe(), workers: int = 0) -> dict[str, list[str]]:
    """Make shards of train/ and val/, whichever there are, in an order drawn once.

    Everything is written beside the output, whole shard by whole shard; the output appears when all are there. The same
    call goes on where it was interrupted.

    Args:
        folder: of <split>/<class>/<image>, as `--data_set folder` reads it.
        output: a new folder.
        workers: processes; 0 works in this one.

    Returns:
        Of each split, the pictures that could not be read and are left out.

    Raises:
        UserError: no pictures, an output that is there, another one begun there, or one that another process makes.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already; give a new folder, or --check to compare it.")
    sources, work = _sources(folder), output.with_name(f"{output.name}.part")
    found = hashlib.sha256()
    for source in sources.values():
        for name in of_files(source.paths, str(folder)):
            found.update(len(name).to_bytes(8, "little") + name)
    plan = {**vars(recipe), "pictures": found.hexdigest()}
    if work.exists() and {*os.listdir(work)} - {LOCK} and (begun := read_json(work / PLAN)) != plan:
        differs = ", ".join(name for name in plan if begun.get(name) != plan[name])
        raise UserError(f"{work} was begun otherwise ({differs}); remove it, or go on as it was begun.")
    work.mkdir(parents=True, exist_ok=True)
    with (work / LOCK).open("w") as file:
        lock(file, work)
        return _make(folder, output, work, sources, plan, recipe, workers)


def _make(
    folder: Path,
    output: Path,
    work: Path,
    sources: dict[str, Files],
    plan: dict[str, Any],
    recipe: Recipe,
    workers: int,
) -> dict[str, list[str]]:
    for split in sources:
        (work / split).mkdir(exist_ok=True)
    write_json(work / PLAN, plan)
    shards = {split: _shards(folder, split, source, work, recipe.size) for split, source in sources.items()}
    waiting = [shard for some in shards.values() for shard in some if not shard.is_done]
    done = sum(map(len, sources.values())) - sum(len(shard.pictures) for shard in waiting)
    with Progress("packing", sum(map(len, sources.values())), done, line_every=LINE_EVERY) as progress:
        for count in _each(partial(Shard.write, recipe=recipe), waiting, workers):
            progress.update(count)
    splits = {
        split: {"name": split, "filenames": [f"{split}/{shard.path.name}" for shard in some]}
        for split, some in shards.items()
    }
    write_json(work / INFO, {"splits": splits, "recipe": vars(recipe)})
    left_out = {}
    for split, source in sources.items():
        _join([shard.index for shard in shards[split]], work / split / INDEX)
        names = set(map(os.fsdecode, _packed(work, split, source).names))
        left_out[split] = [name for name in _names(folder, split, source) if name not in names]
    os.replace(work, output)
    for path in (work / LOCK, work / PLAN, *(shard.index for some in shards.values() for shard in some)):
        (output / path.relative_to(work)).unlink()  # what it took to go on
    return left_out


def check(folder: Path, output: Path, workers: int = 0) -> Iterator[str]:
    """Compare shards with the folder that they were made of, picture by picture.

    Args:
        folder, output, workers: as of `make`.

    Yields:
        What is wrong with a picture; nothing where all is as it should be. Pictures that the folder cannot give either
        are not missed.

    Raises:
        UserError: there are no shards, they are not intact, or their classes are others.
    """
    recipe = from_plain(Recipe, read_json(output / INFO).get("recipe"), f"{output / INFO}: recipe")
    jobs = []
    for split, source in _sources(folder).items():
        packed = _packed(output, split, source)
        number = {name: index for index, name in enumerate(map(os.fsdecode, packed.names))}
        for index, name in enumerate(_names(folder, split, source)):
            found = number.pop(name, None)
            jobs.append((source.name(index), name, None if found is None else packed.place(found), recipe))
        yield from (f"{packed.name(index)}: not in {folder}" for index in number.values())
    with Progress("checking", len(jobs), line_every=LINE_EVERY) as progress:
        for problem in _each(_compare, jobs, workers, 64):
            progress.update()
            if problem:
                yield problem


def _compare(job: tuple[str, str, Place | None, Recipe]) -> str | None:
    """What is wrong with a picture in a shard, beside the file that it was made of."""
    path, name, place, recipe = job
    try:
        original = recipe.encoded(read_file(path))
    except Exception:
        original = None
    if place is None:
        return None if original is None else f"{name}: not in the shards"
    try:
        packed = place.read()
        if original is None:
            return f"{place.shard}:{name}: its file {path} cannot be read any more"
        if packed == original:
            return None
        if not recipe.resize or min(Encoded(original).header.size) > recipe.resize:
            return f"{place.shard}:{name}: other bytes than {path}"
        pair = [np.asarray(decode(data), np.int16) for data in (packed, original)]
        if pair[0].shape != pair[1].shape or np.abs(pair[0] - pair[1]).mean() > ALIKE:
            return f"{place.shard}:{name}: another picture than {path}"
    except Exception as error:  # decoders raise nearly anything on a damaged file
        return f"{place.shard}:{name}: {error}"
    return None


def _sources(folder: Path) -> dict[str, Files]:
    """The splits that a folder has."""
    config = DataConfig(data_set="folder", data_path=str(folder))
    there = [split for split in SPLITS if any((folder / name).is_dir() for name in SPLITS[split])]
    if not there:
        raise UserError(f"{folder} has neither train/ nor val/; expected {folder}/<split>/<class>/<image>.")
    return {split: LOADERS["folder"](config, split) for split in there}


def _names(folder: Path, split: str, source: Files) -> Iterator[str]:
    """Of each picture, its path in the folder of its split, which is its name in a tar."""
    root = next(folder / name for name in SPLITS[split] if (folder / name).is_dir())
    return (os.path.relpath(source.name(index), root) for index in range(len(source)))


def _shards(folder: Path, split: str, source: Files, work: Path, size: int) -> list[Shard]:
    """The tar files of a split, to be written below `work`: neighbours in a folder are spread over all of them."""
    pictures = [(source.name(index), name) for index, name in enumerate(_names(folder, split, source))]
    order = np.random.default_rng(0).permutation(len(pictures)).tolist()
    parts = [order[first : first + size] for first in range(0, len(order), size)]
    return [
        Shard(work / split / f"{number:05}.tar", [pictures[index] for index in part])
        for number, part in enumerate(parts)
    ]


def _join(parts: list[Path], index: Path) -> None:
    """One index of that of each shard."""
    found = [np.load(part) for part in parts]
    longest = max(part.dtype["name"].itemsize for part in found)
    whole = np.empty(sum(map(len, found)), entry(longest))
    at = 0
    for number, part in enumerate(found):
        part["shard"] = number
        whole[at : at + len(part)] = part
        at += len(part)
    save_index(index, whole)


def _packed(output: Path, split: str, source: Files) -> Shards:
    """A split of the shards, whose classes are those of the folder."""
    packed = LOADERS["tar"](DataConfig(data_set="tar", data_path=str(output)), split)
    if packed.classes != source.classes:
        differs = sorted(set(packed.classes) ^ set(source.classes))[0]
        raise UserError(
            f"{output}: {split} has {len(packed.classes)} classes, and the folder {len(source.classes)}: they differ "
            f"in {differs}. Is there a picture of it that can be read?"
        )
    return packed


def _each(function: Callable[[Any], Any], jobs: Sequence[Any], workers: int, chunk: int = 1) -> Iterator[Any]:
    """The function's results in order, from so many processes; what is begun is finished before an error leaves."""
    if not workers:
        yield from map(function, jobs)
        return
    quiet = signal.SIGINT, signal.SIG_IGN  # Ctrl-C goes to all processes of a terminal
    pool = ProcessPoolExecutor(workers, initializer=signal.signal, initargs=quiet)
    try:
        yield from pool.map(function, jobs, chunksize=chunk)
    except BrokenProcessPool:
        raise UserError(
            "a process is gone; it may have run out of memory. Give fewer --num_workers; the same command goes on."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m image_task.shards", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("folder", type=read_path, help="of <split>/<class>/<image>, as --data_set folder reads it")
    add("--output", type=read_path, required=True, help="a new folder, for train/*.tar, val/*.tar and _info.json")
    for field in dataclasses.fields(Recipe):
        add(f"--{field.name}", type=int, default=field.default, help=field.metadata["help"])
    add("--num_workers", type=int, default=os.cpu_count() or 1, help="processes; 0: none but this one")
    add("--check", action="store_true", help="compare the shards that are there with the folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit code of `run_small`; 1 also where a check found something.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    problems: list[str] = []
    code = run_small(partial(_run, argv, problems), interrupted="interrupted; the same command goes on")
    return 1 if problems else code


def _run(argv: Sequence[str] | None, problems: list[str]) -> None:
    options = _parser().parse_args(argv)
    if not 0 <= options.num_workers <= 1024:
        raise UserError(f"--num_workers {options.num_workers}; expected 0 to 1024.")
    output = shown(options.output)
    if options.check:
        problems += check(options.folder, options.output, options.num_workers)
        for problem in problems[:NAMED]:
            print(shown(problem), file=sys.stderr)
        print(f"{output}: {len(problems) or 'nothing'} wrong")
        return
    recipe = Recipe(options.resize, options.quality, options.size)
    for split, names in make(options.folder, options.output, recipe, options.num_workers).items():
        if names:
            some = ", ".join(map(shown, names[:NAMED]))
            print(f"note: {split}: {len(names)} pictures cannot be read and are left out, such as {some}")
    print(f"{output}: read it with --data_set tar --data_path {output}")


if __name__ == "__main__":
    sys.exit(main())
