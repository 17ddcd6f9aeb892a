"""The test on several views of each video: softmax averaged per video, predictions kept in files.

`python -m video_task.views FILE...` merges the files of a test again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from rmeeto.engine import World
from rmeeto.engine.evaluate import own_errors
from rmeeto.engine.precision import autocast
from rmeeto.engine.progress import Progress
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


class ViewData(Protocol):
    """What a test needs of a data set."""

    def test_batches(self) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """This process's share: clips, targets, video numbers, view numbers; all views of a video on one process."""

    def unreadable_videos(self) -> list[int]:
        """Numbers of the videos of this process's share that the latest test could not read."""


def evaluate_views(
    model: nn.Module, data: ViewData, world: World, folder: Path, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Accuracy of the softmax averaged over each video's views; the same for any number of processes.

    Args:
        model: from clips to (B, K) logits, without a DDP wrapper.
        data: see `ViewData`.
        folder: of the run; every process writes its share to views/rank<r>.npz there.
        dtype: of autocast, or None.

    Returns:
        As `merge_views` of all the files.

    Raises:
        UserError: nothing to test, outputs that are not finite, or a folder that cannot be written.
    """
    model.eval()
    parts: list[tuple[np.ndarray, ...]] = []
    with torch.inference_mode(), Progress("testing", None, shown=world.is_main) as progress:
        for clips, *numbers in own_errors(data.test_batches(), world):
            with autocast(world.device, dtype):
                logits = model(clips.to(world.device, non_blocking=True)).float()
            parts.append((logits.cpu().numpy(), *(part.numpy() for part in numbers)))
            progress.update()
    columns = [np.concatenate(column) for column in zip(*parts)] or [np.zeros((0, 0), np.float32), *_NONE]
    own = Views(*columns, np.array(data.unreadable_videos(), np.int64))
    world.together(lambda: _write(folder / FOLDER / f"rank{world.rank}.npz", own))
    sums, loss = _sums(own)
    totals = world.all_reduce(torch.tensor(sums, device=world.device)).tolist()
    losses = torch.tensor(loss, dtype=torch.float64, device=world.device)
    return _result(totals, world.all_reduce(losses).item())


def merge_views(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Accuracy from the files of a test; a view that several of them hold counts once.

    Args:
        paths: of all processes.

    Returns:
        top1, top5: in percent (top5 is top-K where there are fewer than 5 classes).
        loss: mean negative logarithm of the averaged probability of the right class, over the videos that were read.
        count: videos, with the unreadable ones, which count as wrong; unreadable: how many those are.

    Raises:
        UserError: no files, or files that are not of one test.
    """
    shares = [share for share in map(_read, paths) if len(share.logits)]
    if not shares:
        raise UserError(f"nothing to test: {len(paths)} files of views, and no view in them.")
    if len({share.logits.shape[1] for share in shares}) > 1:
        raise UserError(
            "the files of views are of models with different numbers of classes; give those of one test."
        )
    whole = Views(*map(np.concatenate, zip(*shares)))
    _, first = np.unique(np.stack([whole.videos, whole.views]), axis=1, return_index=True)
    unreadable = np.setdiff1d(whole.unreadable, whole.videos)
    return _result(*_sums(Views(*(column[first] for column in whole[:4]), unreadable)))


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


def _write(path: Path, share: Views) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **share._asdict())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); choose another --output_dir.") from None


def _read(path: str | Path) -> Views:
    try:
        with np.load(path, allow_pickle=False) as file:
            return Views(*(file[name] for name in Views._fields))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read as a file of views ({error}); give views/rank*.npz."
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Merge files of views and print the accuracy as JSON.

    Returns:
        The exit code: 0, or 2 for a user error.
    """
    parser = argparse.ArgumentParser(
        prog="video_task.views", description="Merge a test's files of views again."
    )
    parser.add_argument("files", nargs="+", type=Path, help="a run folder's views/rank*.npz")
    try:
        print(json.dumps(merge_views(parser.parse_args(argv).files), indent=2))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
