"""Which destination near it each source is most similar to: in tiles, so that far pairs are not compared.

B batch, S sources, D destinations, C channels; a grid has T frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Triple = tuple[int, int, int]
Similarity = Callable[[Tensor, Tensor], Tensor]  # (N, S, C), (N, D, C) -> (N, S, D)


def covers(window: Triple, grid: Triple) -> bool:
    """Whether every source sees the whole grid, so that the matching is the exact one."""
    return all(reach >= size for reach, size in zip(window, grid))


def num_pairs(window: Triple, grid: Triple, num_tokens: int) -> int | None:
    """Pairs that a windowed matching of ``num_tokens`` (class token counted) compares; None: all, as the exact one."""
    patches = num_tokens - 1
    tiles = _tile(window, grid)
    pairs = grid[0] * tiles.groups * tiles.num_sources * tiles.frames * tiles.num_destinations
    whole = (patches - patches // 2) * (patches // 2)
    return pairs if pairs < whole and not covers(window, grid) else None


def best_near(
    sources: Tensor,
    destinations: Tensor,
    at: Tensor,
    to: Tensor,
    window: Triple,
    grid: Triple,
    similarity: Similarity,
) -> tuple[Tensor, Tensor]:
    """Score and destination that each source picks among those in its window.

    Args:
        sources: (B, S, C).
        destinations: (B, D, C).
        at, to: (B, S) and (B, D) cells of the sources and of the destinations, ascending.
        window: t, h, w: a source at (f, y, x) looks at |df| < t, |dy| < h, |dx| < w.
        grid: T, H, W.
        similarity: of two sets of vectors.

    Returns:
        (B, S) each. A source with no destination in its window scores -inf and picks the one next to it in the
        sequence. Equal scores go to the lower position.
    """
    num_sources, num_destinations = sources.shape[1], destinations.shape[1]
    if num_pairs(window, grid, num_sources + num_destinations + 1) is None:
        seen = _seen(at.unsqueeze(2), to.unsqueeze(1), window, grid)
        score, pick = similarity(sources, destinations).masked_fill_(~seen, -torch.inf).max(-1)
    else:
        score, pick = _best_in_tiles(sources, destinations, at, to, window, grid, similarity)
    beside = torch.arange(num_sources, device=at.device).clamp(max=num_destinations - 1)
    return score, torch.where(score == -torch.inf, beside, pick)


@dataclass(frozen=True)
class _Tiles:
    """Groups of sources, each some rows of one frame, whose candidates are a run of destinations in a few frames.

    Tokens keep their order, so what lies in consecutive rows of a frame is a run of the sequence, and sources and
    destinations alternate: of n cells, at most ceil(n / 2) hold either.
    """

    rows: int  # of a group
    groups: int  # of a frame
    frames: int  # with candidates for a group
    reach: int  # rows of each of these frames
    num_sources: int  # places in a group
    num_destinations: int  # places in a run


def _tile(window: Triple, grid: Triple) -> _Tiles:
    (t, h, _), (num_frames, height, width) = window, grid
    rows = min(h, height)
    reach = min(rows + 2 * (h - 1), height)
    half, run = -(-rows * width // 2), -(-reach * width // 2)
    return _Tiles(rows, -(-height // rows), min(2 * t - 1, num_frames), reach, half, run)


def _best_in_tiles(
    sources: Tensor,
    destinations: Tensor,
    at: Tensor,
    to: Tensor,
    window: Triple,
    grid: Triple,
    similarity: Similarity,
) -> tuple[Tensor, Tensor]:
    batch, num_sources, _ = sources.shape
    (t, h, _), (num_frames, height, width) = window, grid
    tiles, device = _tile(window, grid), at.device
    frame = torch.arange(num_frames, device=device)
    group = torch.arange(tiles.groups, device=device) * tiles.rows
    first_frame = (frame - t + 1).clamp(0, num_frames - tiles.frames)
    first_row = (group - h + 1).clamp(0, height - tiles.reach)

    begin = (frame.unsqueeze(1) * height + group) * width  # (T, groups) first cell of each group
    end = (frame.unsqueeze(1) * height + (group + tiles.rows).clamp(max=height)) * width
    index, inside = _members(at, begin.flatten(), end.flatten(), tiles.num_sources)  # (B, U, s)

    frames = first_frame.view(-1, 1, 1) + torch.arange(tiles.frames, device=device)  # (T, 1, frames)
    begin = ((frames * height + first_row.view(1, -1, 1)) * width).flatten()  # (U * frames,)
    run, valid = _members(to, begin, begin + tiles.reach * width, tiles.num_destinations)
    units = num_frames * tiles.groups
    candidates = tiles.frames * tiles.num_destinations
    run, valid = (x.reshape(batch, units, candidates) for x in (run, valid))  # (B, U, d)

    scores = similarity(_rows(sources, index).flatten(0, 1), _rows(destinations, run).flatten(0, 1))
    seen = _seen(_cells(at, index).unsqueeze(3), _cells(to, run).unsqueeze(2), window, grid)
    seen = seen & valid.unsqueeze(2)
    score, column = scores.view_as(seen).masked_fill_(~seen, -torch.inf).max(-1)  # (B, U, s)
    pick = run.gather(2, column)

    # Every source is in one group; empty places write into one spare column.
    place = torch.where(inside, index, num_sources).flatten(1)
    score = score.new_empty(batch, num_sources + 1).scatter_(1, place, score.flatten(1))
    pick = pick.new_empty(batch, num_sources + 1).scatter_(1, place, pick.flatten(1))
    return score[:, :-1], pick[:, :-1]


def _members(cells: Tensor, begin: Tensor, end: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Which of the ascending (B, N) ``cells`` lie in each of U ranges: indices (B, U, places), and which are real."""
    bounds = torch.cat([begin, end]).expand(cells.shape[0], -1).contiguous()
    first, last = torch.searchsorted(cells.contiguous(), bounds).chunk(2, dim=1)
    index = first.unsqueeze(2) + torch.arange(places, device=cells.device)
    return index.clamp(max=cells.shape[1] - 1), index < last.unsqueeze(2)


def _seen(at: Tensor, to: Tensor, window: Triple, grid: Triple) -> Tensor:
    """Whether cells ``to`` lie in the windows of cells ``at``, broadcast against each other."""
    t, h, w = window
    _, height, width = grid
    at, to = at.int(), to.int()
    seen = torch.ones_like(at == to)
    for reach, size, unit in ((t, grid[0], height * width), (h, height, width), (w, width, 1)):
        if reach < size:
            seen &= ((at // unit) % size - (to // unit) % size).abs() < reach
    return seen


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(B, N, C) at (B, U, n) -> (B, U, n, C): whole rows, several times as fast as a gather."""
    start = torch.arange(x.shape[0], device=x.device).view(-1, 1, 1) * x.shape[1]
    return x.flatten(0, 1).index_select(0, (index + start).flatten()).view(*index.shape, x.shape[-1])


def _cells(cells: Tensor, index: Tensor) -> Tensor:
    return cells.gather(1, index.flatten(1)).view_as(index)
