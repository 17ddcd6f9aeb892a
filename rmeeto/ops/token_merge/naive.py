"""Matching and merging as they are defined: metric, hidden, residual (B, L, C), size (B, L, 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def naive_match_tokens(
    metric: Tensor, r: int, class_index: int | Tensor, exact: bool = False
) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
    """keep, source, destination and the new class index; arguments as in `rmeeto.ops.match_tokens`."""
    batch, num_tokens, _ = metric.shape
    device = metric.device
    aside = torch.as_tensor(class_index, device=device).expand(batch).unsqueeze(1)  # (B, 1)
    index = torch.arange(num_tokens - 1, device=device)
    patches = index + (index >= aside)  # (B, L - 1) positions of all tokens but the class token

    with torch.autocast(device.type, enabled=False):
        unit = F.normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)
        unit = _take(unit, patches)
        score, pick = (unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=-1)  # (B, S)
    order = score.argsort(dim=1, descending=True, stable=True)[:, :r]

    gone = torch.zeros_like(patches).scatter_(1, 2 * order, 1)
    place = (
        aside - (2 * order < aside).sum(1, keepdim=True) if exact else aside * (num_tokens - r) // num_tokens
    )
    rank = index - gone.cumsum(1)  # among the patches that stay
    rank = rank + (rank >= place)  # and the class token
    keep = torch.empty(batch, num_tokens - r, dtype=torch.long, device=device).scatter_(1, place, aside)
    keep.scatter_(1, rank[gone == 0].view(batch, -1), patches[gone == 0].view(batch, -1))
    destination = rank.gather(1, 2 * pick.gather(1, order) + 1)
    stays_int = isinstance(class_index, int) and not exact
    return keep, patches.gather(1, 2 * order), destination, int(place[0]) if stays_int else place.squeeze(1)


def naive_merge_tokens(
    hidden: Tensor,
    residual: Tensor | None,
    size: Tensor | None,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
) -> tuple[Tensor, Tensor]:
    """sum(x * size) / sum(size), and sum(size), of x = residual + hidden."""
    x = hidden if residual is None else residual + hidden
    if size is None:
        size = torch.ones(*x.shape[:2], 1, dtype=x.dtype, device=x.device)

    def reduce(values: Tensor) -> Tensor:
        index = destination.unsqueeze(-1).expand(-1, -1, values.shape[-1])
        return _take(values, keep).scatter_add(1, index, _take(values, source))

    new_size = reduce(size)
    return reduce(x * size) / new_size, new_size


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
