"""Forward and backward pass of a training as a CUDA graph: the host launches once instead of some thousand times."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmeeto.engine.dist import World
from rmeeto.engine.optim import OptimConfig

# (images, targets, passes that share a step) -> the loss and its terms; adds to the gradients
Work = Callable[[Tensor, Tensor, int], dict[str, Tensor]]
EAGER = 3  # calls before a capture: kernels compile and gradients are allocated there
SHAPES = 3  # graphs: of a step, and of the shorter ones at the end of an epoch


class Captured:
    """`work` that is captured when it has run a few times, and replayed from then on, with the same numbers.

    Gradients, weights and optimizer stay where they are in memory, and all but the two passes runs as before. What
    cannot be captured runs on as it is, and one line says why.

    Args:
        work: forward and backward pass of a micro-batch.
        optim, world: of the training.
        cached: whether the teacher's answers come from a cache.
    """

    def __init__(self, work: Work, optim: OptimConfig, world: World, cached: bool = False) -> None:
        self._work, self._world = work, world
        self._graphs: dict[Any, tuple[tuple[Tensor, Tensor], Callable[[], dict[str, Tensor]]]] = {}
        self._calls: Counter = Counter()
        self.active = optim.cuda_graph
        if self.active:
            self._stop(cannot(optim, world, cached))

    def __call__(self, images: Tensor, targets: Tensor, passes: int) -> dict[str, Tensor]:
        key = images.shape, images.dtype, targets.shape, targets.dtype, passes
        if self.active and key not in self._graphs and len(self._graphs) < SHAPES:
            self._calls[key] += 1
            if self._calls[key] == EAGER:
                before = _drawn()
                losses = self._work(images, targets, passes)
                self._stop("the model draws random numbers on the CPU" if _drawn() != before else None)
                return losses
            if self._calls[key] > EAGER:
                self._capture(key, images, targets, passes)
        if not self.active or key not in self._graphs:
            return self._work(images, targets, passes)
        inputs, replay = self._graphs[key]
        for static, given in zip(inputs, (images, targets)):
            static.copy_(given)
        return replay()

    def _capture(self, key: Any, images: Tensor, targets: Tensor, passes: int) -> None:
        inputs = images.clone(), targets.clone()
        try:
            self._graphs[key] = inputs, capture(lambda: self._work(*inputs, passes))
        except RuntimeError as error:
            self._stop(str(error).splitlines()[0])

    def _stop(self, reason: str | None) -> None:
        if reason is not None:
            self.active = False
            self._graphs.clear()
            self._world.print(f"note: without optim.cuda_graph, since {reason}")


def cannot(optim: OptimConfig, world: World, cached: bool = False) -> str | None:
    """Why steps of these settings cannot be captured."""
    if world.device.type != "cuda":
        return f"CUDA graphs need a CUDA device and this run is on {world.device}"
    if world.size > 1:
        return f"gradients pass between {world.size} processes"
    if optim.elastic_r:
        return "optim.elastic_r takes another r from step to step"
    if cached:
        return "the answers of distill.teacher_cache come from a disk"
    return None


def capture(run: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
    """A function that does on the GPU what ``run`` does, with the tensors that it read and wrote now.

    Raises:
        RuntimeError: it waits for the GPU, or does something else that a graph cannot hold.
    """
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph):
            losses = {name: loss.detach() for name, loss in run().items()}
    except RuntimeError:
        torch.cuda.set_stream(current)  # torch may leave the capture's own stream behind
        raise

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return losses

    return replay


def _drawn() -> tuple[bytes, ...]:
    """Where the CPU's generators are: a graph would replay what was drawn from them while it was captured."""
    _, numbers, *place = np.random.get_state()
    own = torch.get_rng_state().numpy().tobytes(), str(random.getstate()).encode()
    return *own, numbers.tobytes(), str(place).encode()
