"""Losses while they are on the GPU: whether all were finite, and their means; nothing here waits but what says so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmeeto.engine.dist import World
from rmeeto.errors import UserError

_NEVER = 2**62


class Watch:
    """Looks for a loss that is not finite, on all processes, without waiting for the GPU."""

    def __init__(self, world: World) -> None:
        self._world = world
        # Optimizer step and rank of the first loss that was not finite.
        self._failed = torch.full((2,), _NEVER, device=world.device)

    def see(self, losses: Tensor, step: int) -> Tensor:
        """Note the losses that optimizer step `step` (from 0) rests on.

        Args:
            losses: of this process, of any shape.

        Returns:
            (), 1.0 if one was not finite so far on any process, else 0.0. Assigned to the `found_inf` of a fused
            optimizer (torch's protocol for GradScaler) it makes the step do nothing, on all processes alike.
        """
        finite = losses.isfinite().all()
        here = torch.stack([torch.where(finite, _NEVER, step), torch.where(finite, _NEVER, self._world.rank)])
        self._failed = torch.where(self._failed < _NEVER, self._failed, self._world.all_reduce(here, "MIN"))
        return (self._failed[0] < _NEVER).float()

    def raise_if_failed(self, epoch: int, *advice: str) -> None:
        """Raise for the first loss that was not finite. Waits for the GPU.

        Args:
            epoch: now, from 0.
            advice: lines on what to try.

        Raises:
            UserError: there was one.
        """
        step, rank = self._failed.tolist()
        if step < _NEVER:
            raise UserError(
                f"the loss is not finite on rank {rank} at step {step + 1} (epoch {epoch + 1}); that optimizer step "
                "was skipped and nothing was saved since.",
                *advice,
            )


class Means:
    """Means of the losses over an epoch's micro-batches, each batch of equal weight."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.clear()

    def clear(self) -> None:
        self.names: list[str] = []
        self.sums = torch.zeros(0, dtype=torch.float64, device=self._world.device)
        self.count = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        """Scalars by name, the same names every time."""
        if not self.names:
            self.names, self.sums = list(losses), self.sums.new_zeros(len(losses))
        self.sums += torch.stack([loss.detach() for loss in losses.values()])
        self.count += 1

    def all(self) -> dict[str, float]:
        """Over all processes. Waits for the GPU."""
        *totals, count = self._world.all_reduce(torch.cat([self.sums, self.sums.new_full((1,), self.count)])).tolist()
        return {name: total / count for name, total in zip(self.names, totals)}

    def state(self) -> dict[str, Any]:
        return {"names": self.names, "sums": self.sums.tolist(), "count": self.count}

    def load(self, state: dict[str, Any]) -> None:
        self.names, self.count = state["names"], state["count"]
        self.sums = self.sums.new_tensor(state["sums"])


def merged(states: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """The means of several processes as the state of each of `size` that go on with them."""
    sums = [sum(parts) / size for parts in zip(*(state["sums"] for state in states))]
    return {
        "names": states[0]["names"],
        "sums": sums,
        "count": sum(state["count"] for state in states) // size,
    }
