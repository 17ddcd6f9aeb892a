"""The layout that a merging rule sees: which tokens may go, where to, how many, and what order the rest is left in.

B batch, L tokens (class token counted), P patches (tokens that are not set aside), S sources, D destinations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rmeeto.merge.plan import MergePlan, take_tokens

CLASS_POSITIONS = ("proportional", "exact")


@dataclass(frozen=True)
class Tokens:
    """Where the tokens of a sequence stand, and how a merge leaves those that stay.

    Of a scan, the class token is set aside; of the others (patches), even ones are sources and odd ones destinations.
    Of a Transformer (``prefix``), no token is set aside; the first ``prefix`` tokens never merge, and stay first.

    Args:
        num: tokens L, the class token counted.
        class_index: where the class token of a scan is, an int or a (B,) tensor. None: no token is protected; then
            token 0 is set aside all the same, as the released code does, and r may reach half of all the tokens.
        prefix: of a Transformer, how many tokens never merge (class, distillation, registers).
        grid: T, H, W of the patches before any merge (images are one frame).
        cell: (B, L) or (L,) which cell of the grid, counted frame by frame and row by row, each token stands at; the
            class token's entry is not read. None: the tokens fill the grid.
        keep_order: whether the tokens that stay keep their order; else the sources among them come first, by falling
            score (in a Transformer in their order), then the destinations.
        class_position: ``proportional`` or ``exact``, see `MergeConfig`.
        prune: make plans that drop the tokens that go.

    Raises:
        ValueError: a class index or a prefix out of range, or an unknown class position.
    """

    num: int
    class_index: int | Tensor | None = None
    prefix: int | None = None
    grid: tuple[int, int, int] | None = None
    cell: Tensor | None = None
    keep_order: bool = True
    class_position: str = "proportional"
    prune: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "num", number(self.num))
        index, prefix = self.class_index, self.prefix
        if self.class_position not in CLASS_POSITIONS:
            raise ValueError(f"match: class_position={self.class_position!r}; expected one of {CLASS_POSITIONS}")
        if prefix is not None and not (0 <= prefix <= self.num and index is None):
            raise ValueError(
                f"match: prefix={prefix} with class_index={index}; expected 0 to {self.num} tokens, and no "
                "class_index: a class token at the front is one of the prefix"
            )
        if isinstance(index, int) and not 0 <= index < self.num:
            raise ValueError(f"match: class_index={index}; expected 0 to {self.num - 1} for this metric")

    @property
    def num_patches(self) -> int:
        """Tokens P that are not set aside."""
        return self.num if self.prefix is not None else self.num - 1

    @property
    def num_free(self) -> int:
        """Tokens F that may merge: patches without a prefix."""
        return self.num_patches - (self.prefix or 0)

    @property
    def num_sources(self) -> int:
        """Patches 0, 2, 4, ..., which may go."""
        return (self.num_patches + 1) // 2

    @property
    def num_destinations(self) -> int:
        """Patches 1, 3, 5, ..., which take them; a prefix takes none."""
        return self.num_patches // 2 - (self.prefix or 0) // 2

    def limit(self, r: int) -> int:
        """Tokens that a merge asked for ``r`` really removes: at most half of those that may go."""
        if self.prefix is not None:
            return max(0, min(r, (self.num - self.prefix) // 2))
        if self.num < 3:  # one token is always set aside: there is no pair to merge
            return 0
        return max(0, min(r, (self.num if self.class_index is None else self.num - 1) // 2))

    def patches(self, device: torch.device | None = None) -> Tensor:
        """Positions of the patches in the sequence: (P,), or (B, P) where the class token has one of its own."""
        index = torch.arange(self.num_patches, device=device)
        if self.prefix is not None:
            return index
        at = self._aside if isinstance(self._aside, int) else self._aside.unsqueeze(1)
        return index + (index >= at)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The sources' and the destinations' part of what tokens have: (B, L, ...) -> (B, S, ...), (B, D, ...)."""
        patches = self.patches(x.device)
        return _take(x, patches[..., 0::2]), _take(x, patches[..., 1::2])

    def free(self, x: Tensor) -> Tensor:
        """The part of what tokens have that may merge: (B, L, ...) -> (B, F, ...), patches without a prefix."""
        return _take(x, self.patches(x.device)[..., self.prefix or 0 :])

    def cells(self, device: torch.device | None = None) -> Tensor:
        """The cell of the grid that each token stands at: (B, L) or (L,).

        Raises:
            ValueError: no grid, or one that the tokens do not fill while nothing says where they are.
        """
        if self.grid is None:
            raise ValueError("match: a window without the grid=(frames, rows, columns) that it counts in")
        if self.cell is None:
            if self.num != math.prod(self.grid) + 1 or not isinstance(self._aside, int):
                raise ValueError(
                    f"match: {self.num} tokens are not those of grid={self.grid} and a class token at one place; "
                    "give the position of each"
                )
            return grid_cells(self.num, self._aside, device)
        if self.cell.shape[-1] != self.num:
            raise ValueError(f"match: position is of {self.cell.shape[-1]} tokens; expected {self.num}")
        return self.cell

    def best(self, scores: Tensor, neighbour: int = 1, first: int = 0) -> tuple[Tensor, Tensor]:
        """The score and the index of the destination that each source picks: (B, S, D) -> (B, S), (B, S).

        Args:
            scores: of each source with each destination, the larger the sooner they merge; those of a prefix become
                -inf in place.
            neighbour: 1 picks the best destination, 3 the third best; ties go to the lower one.
            first: which source the scores start with, where they are of some sources alone.

        Raises:
            ValueError: too few destinations.
        """
        if neighbour > self.num_destinations:
            raise ValueError(
                f"match: neighbour={neighbour}, but there are only {self.num_destinations} destinations "
                f"among {self.num} tokens; use a smaller neighbour or a smaller r"
            )
        if self.prefix:
            scores[:, : max(0, (self.prefix + 1) // 2 - first)] = -torch.inf
            scores[:, :, : self.prefix // 2] = -torch.inf
        if neighbour == 1:
            score, pick = scores.max(dim=-1)
            return score, pick
        ranked = scores.argsort(dim=-1, descending=True, stable=True)[..., neighbour - 1]
        return scores.gather(-1, ranked.unsqueeze(-1)).squeeze(-1), ranked

    def plan(self, score: Tensor, pick: Tensor, r: int) -> MergePlan:
        """The plan in which the r sources of highest score go, each into its destination.

        Args:
            score: (B, S) of each source; ties go to the lower position. A prefix's need to be the lowest (-inf).
            pick: (B, S) index of a destination, 0 to D - 1.
            r: tokens to remove, 1 to ``limit``.
        """
        order = score.argsort(dim=1, descending=True, stable=True)
        first, pick = order[:, :r], pick.gather(1, order[:, :r])
        if self.keep_order:
            return self._ordered(2 * first, 2 * pick + 1)
        device, batch = score.device, score.shape[0]
        destinations = (2 * torch.arange(self.num_patches // 2, device=device) + 1).expand(batch, -1)
        unmerged = 2 * order[:, r:]
        if self.prefix is None:
            kept = torch.cat([unmerged, destinations], dim=1)
            return self._with_class(2 * first, kept, pick + unmerged.shape[1])
        unmerged = unmerged.sort(dim=1).values
        front = torch.arange(self.prefix, device=device).expand(batch, -1)
        kept = torch.cat([front, unmerged[:, (self.prefix + 1) // 2 :], destinations[:, self.prefix // 2 :]], dim=1)
        return MergePlan(kept, 2 * first, pick + unmerged.shape[1], 0 if self.prefix else None, self.prune)

    def pair(self, source: Tensor, destination: Tensor) -> MergePlan:
        """The plan in which tokens of any choice go into others, those that stay in their order.

        Args:
            source: (B, r) index in ``free(x)`` of each token that goes; none twice.
            destination: (B, r) that of the token it goes into; none that goes itself.

        Raises:
            ValueError: tokens that do not keep their order, which is defined for sources and destinations alone.
        """
        if not self.keep_order:
            raise ValueError("this rule chooses its own sources, which needs keep_order=True")
        first = self.prefix or 0
        return self._ordered(source + first, destination + first)

    def identity(self, batch: int, device: torch.device | None = None) -> MergePlan:
        """The plan that merges nothing."""
        keep = torch.arange(self.num, device=device).expand(batch, -1)
        if self.prefix is not None:
            index: int | Tensor | None = 0 if self.prefix else None
        else:
            index = self.class_index
            if index is not None and self.class_position == "exact":
                index = _per_sample(index, batch, device)
        return MergePlan(keep, keep[:, :0], keep[:, :0], index, self.prune)

    @property
    def _aside(self) -> int | Tensor:
        return 0 if self.class_index is None else self.class_index

    def _ordered(self, source: Tensor, destination: Tensor) -> MergePlan:
        """Patches that stay in their order, and the places in it that those which go are found at."""
        batch, r, patches = source.shape[0], number(source.shape[1]), self.num_patches
        index = torch.arange(patches, device=source.device)
        gone = torch.zeros(batch, patches, dtype=torch.long, device=source.device).scatter(1, source, 1)
        rank = index - gone.cumsum(1)  # place of each patch that stays
        # Every patch writes its index at its place; those that go write into one spare column.
        place = rank.scatter(1, source, patches - r)
        kept = place.new_empty(batch, patches - r + 1).scatter(1, place, index.expand(batch, -1))[:, :-1]
        at = rank.gather(1, destination)
        if self.prefix is not None:
            return MergePlan(kept, source, at, 0 if self.prefix else None, self.prune)
        return self._with_class(source, kept, at)

    def _with_class(self, source: Tensor, kept: Tensor, destination: Tensor) -> MergePlan:
        """From patches to tokens: the class token takes its place among those that stay."""
        batch, r, device, aside = source.shape[0], number(source.shape[1]), source.device, self._aside
        patches = self.patches(device)
        place, reported = self._class_place(source)
        at = place if isinstance(place, int) else place.unsqueeze(1)
        out = torch.arange(self.num - r, device=device).expand(batch, -1)
        keep = F.pad(_look_up(patches, kept), (0, 1)).gather(1, out - (out > at).long())
        keep = torch.where(out == at, _per_sample(aside, batch, device).unsqueeze(1), keep)
        index = None if self.class_index is None else reported
        return MergePlan(keep, _look_up(patches, source), destination + (destination >= at), index, self.prune)

    def _class_place(self, source: Tensor) -> tuple[int | Tensor, int | Tensor]:
        """Where the class token is put, and where it is said to be."""
        p, batch, r = self._aside, source.shape[0], number(source.shape[1])
        exact = self.class_position == "exact"
        if self.keep_order:
            at = p * (self.num - r) // self.num
            if exact:
                index = _per_sample(p, batch, source.device)
                at = index - (source < index.unsqueeze(1)).sum(1)
            return at, at
        reported, last = p * (self.num_sources - r) // self.num_sources, self.num_sources - r
        place = min(reported, last) if isinstance(reported, int) else reported.clamp(max=last)
        if exact:
            place = _per_sample(place, batch, source.device)
        return place, place if exact else reported


def grid_cells(num_tokens: int, class_index: int, device: torch.device | None = None) -> Tensor:
    """The cells of tokens that have not been merged yet: (L,), -1 for the class token."""
    index = torch.arange(num_tokens, device=device)
    return torch.where(index == class_index, -1, index - (index > class_index).long())


def _per_sample(index: int | Tensor, batch: int, device: torch.device | None) -> Tensor:
    if isinstance(index, Tensor):
        return index
    return torch.full((batch,), index, dtype=torch.long, device=device)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """(B, L, ...) at (n,) or (B, n) positions."""
    return x.index_select(1, index) if index.ndim == 1 else take_tokens(x, index)


def _look_up(positions: Tensor, index: Tensor) -> Tensor:
    return positions[index] if positions.ndim == 1 else positions.gather(1, index)


def number(size: int | Tensor) -> int:
    """A size as a number, which it is but for torch.jit.trace."""
    return int(size) if isinstance(size, Tensor) else size
