"""Batches on their way to the model: on a GPU the next one is brought there while the current one is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def on_device(batches: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """The batches on a device.

    On a GPU one batch is fetched ahead, on a stream of its own: its copy (from page-locked memory) and what is left to
    do to it run beside the step before. Elsewhere a batch is fetched when it is asked for.
    """
    if device.type != "cuda":
        for batch in batches:
            yield tuple(part.to(device) for part in batch)
        return
    source, side = iter(batches), torch.cuda.Stream(device)

    def fetch() -> tuple[Tensor, ...] | None:
        with torch.cuda.stream(side):
            batch = next(source, None)
            return batch and tuple(part.to(device, non_blocking=True) for part in batch)

    batch = fetch()
    while batch is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for part in batch:
            part.record_stream(current)  # its memory is the side stream's, which would use it again too early
        ahead = fetch()
        yield batch
        batch = ahead
