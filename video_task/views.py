"""The test on several views of each video: softmax averaged per video, predictions kept in files.

`python -m video_task.views FILE...` merges the files of a test again.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from zipfile import BadZipFile

if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import numpy as np
import torch
from torch import Tensor, nn

from rmeeto.cli.parser import Parser, read_path, run_small
from rmeeto.engine import World
from rmeeto.engine.evaluate import rank_errors
from rmeeto.engine.precision import autocast
from rmeeto.engine.progress import LINE_EVERY, Progress
from rmeeto.errors import UserError

FOLDER = "views"


class Views(NamedTuple):
    """Predictions on n views.

    Attributes:
        logits: (n, K) float32.
        targets, videos, views: (n,) class, video number, and which view of the video.
        unreadable: (m,) numbers of videos that could not be read.
    """

    logits: np.ndarray
    targets: np.ndarray
    videos: np.ndarray
    views: np.ndarray
    unreadable: np.ndarray


class Origin(NamedTuple):
    """Which test a file is of, and which process's share of it.

    Attributes:
        test: drawn anew for each test, the same on all its processes.
        rank, world_size: of the process that wrote the file.
    """

    test: str
    rank: int
    world_size: int


class ViewData(Protocol):
    """What a test needs of a data set."""

    def test_batches(self) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """This process's share: clips, targets, video numbers, view numbers; all views of a video on one process."""

    def unreadable_videos(self) -> list[int]:
        """Numbers of the videos of this process's share that the latest test could not read."""


def evaluate_views(
    model: nn.Module,
    data: ViewData,
    world: World,
    folder: Path,
    dtype: torch.dtype | None = None,
    line_every: float = LINE_EVERY,
) -> dict[str, Any]:
    """Accuracy of the softmax averaged over each video's views; the same for any number of processes.

    Args:
        model: from clips to (B, K) logits, without a DDP wrapper.
        data: see `ViewData`.
        folder: of the run; every process writes its share to views/rank<r>.npz there.
        dtype: of autocast, or None.
        line_every: seconds between two lines on how far it is, where there is no terminal.

    Returns:
        As `merge_views` of all the files.

    Raises:
        UserError: nothing to test, outputs that are not finite, or a folder that cannot be written.
    """
    model.eval()
    parts: list[tuple[np.ndarray, ...]] = []
    with torch.inference_mode(), Progress("testing", None, shown=world.is_main, line_every=line_every) as progress:
        for clips, *numbers in rank_errors(data.test_batches(), world):
            with autocast(world.device, dtype):
                logits = model(clips.to(world.device, non_blocking=True)).float()
            parts.append((logits.cpu().numpy(), *(part.numpy() for part in numbers)))
            progress.update()
    columns = [np.concatenate(column) for column in zip(*parts)] or [np.zeros((0, 0), np.float32), *_NONE]
    own = Views(*columns, np.array(data.unreadable_videos(), np.int64))
    origin = Origin(world.on_main(lambda: uuid.uuid4().hex), world.rank, world.size)
    world.on_every(lambda: _write(folder / FOLDER / f"rank{world.rank}.npz", origin, own))
    sums, loss = _sums(own)
    totals = world.all_reduce(torch.tensor(sums, device=world.device)).tolist()
    losses = torch.tensor(loss, dtype=torch.float64, device=world.device)
    return _result(totals, world.all_reduce(losses).item())


def merge_views(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Accuracy from the files of a test.

    Args:
        paths: of all its processes, each once, in any order.

    Returns:
        top1, top5: in percent (top5 is top-K where there are fewer than 5 classes).
        loss: mean negative logarithm of the averaged probability of the right class, over the videos that were read.
        count: videos, with the unreadable ones, which count as wrong; unreadable: how many those are.

    Raises:
        UserError: no files, files of several tests, or not exactly one of each process.
    """
    files = [(Path(path), *_read(path)) for path in paths]
    if not files:
        raise UserError("nothing to test: no files of views are given.")
    _check_one_test([(path, origin) for path, origin, _ in files])
    seen = [share for *_, share in files if len(share.logits)]
    if not seen:
        raise UserError(f"nothing to test: {len(files)} files of views, and no view in them.")
    columns = map(np.concatenate, zip(*(share[:4] for share in seen)))
    unreadable = np.concatenate([share.unreadable for *_, share in files])
    return _result(*_sums(Views(*columns, unreadable)))


def _check_one_test(files: list[tuple[Path, Origin]]) -> None:
    first, whole = files[0]
    ranks: dict[int, Path] = {}
    for path, origin in files:
        if origin.test != whole.test:
            raise UserError(f"{path} is of another test than {first}; give the files of one test.")
        if origin.rank in ranks:
            raise UserError(f"{path} is of rank {origin.rank}, as {ranks[origin.rank]} is; give each rank's file once.")
        ranks[origin.rank] = path
    missing = sorted(set(range(whole.world_size)) - set(ranks))
    if missing:
        raise UserError(
            f"{first.with_name(f'rank{missing[0]}.npz')} is missing: {whole.world_size} processes tested, and "
            f"{len(files)} files are given; give those of all."
        )


def _sums(share: Views) -> tuple[list[int], float]:
    """Videos right at the first place, among the first five, read, unreadable; sum of their losses."""
    videos, first, inverse, num_views = np.unique(
        share.videos, return_index=True, return_inverse=True, return_counts=True
    )
    if not len(videos):
        return [0, 0, 0, len(share.unreadable)], 0.0
    probabilities = torch.from_numpy(share.logits).softmax(-1).double()
    mean = probabilities.new_zeros(len(videos), probabilities.shape[1])
    mean.index_add_(0, torch.from_numpy(inverse), probabilities)
    mean /= torch.from_numpy(num_views).unsqueeze(1)
    targets = torch.from_numpy(share.targets[first]).unsqueeze(1)
    right = mean.topk(min(5, mean.shape[1])).indices == targets
    tiny = torch.finfo(torch.float32).tiny
    loss = -mean.gather(1, targets).clamp(min=tiny).log().sum().item()
    return [int(right[:, 0].sum()), int(right.sum()), len(videos), len(share.unreadable)], loss


def _result(sums: list[int], loss: float) -> dict[str, Any]:
    top1, top5, read, missing = sums
    if not read:
        raise UserError(f"nothing to test: no video could be read, {missing} could not.")
    if not np.isfinite(loss):
        raise UserError("the model's outputs are not finite in the test; try --amp off, or other weights.")
    count = read + missing
    return {
        "top1": 100 * top1 / count,
        "top5": 100 * top5 / count,
        "loss": loss / read,
        "count": count,
        "unreadable": missing,
    }


_NONE = [np.zeros(0, np.int64)] * 3


def _write(path: Path, origin: Origin, share: Views) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **origin._asdict(), **share._asdict())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); choose another --output_dir.") from None


def _read(path: str | Path) -> tuple[Origin, Views]:
    try:
        with np.load(path, allow_pickle=False) as file:
            share = Views(*(file[name] for name in Views._fields))
            origin = [file[name].item() for name in Origin._fields if name in file]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a file of views ({error}); give views/rank*.npz.") from None
    if len(origin) < len(Origin._fields):
        raise UserError(f"{path} does not say which test it is of (an older version wrote it); test again.")
    return Origin(*origin), share


def main(argv: Sequence[str] | None = None) -> int:
    """Merge files of views and print the accuracy as JSON; the exit code of `run_small`."""
    parser = Parser(prog="python -m video_task.views", description="Merge a test's files of views again.")
    parser.add_argument("files", nargs="+", type=read_path, help="a run folder's views/rank*.npz")
    files = parser.parse_args(argv).files
    return run_small(lambda: print(json.dumps(merge_views(files), indent=2), flush=True))


if __name__ == "__main__":
    sys.exit(main())
