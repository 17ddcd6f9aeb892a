"""How alike tokens are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DISTANCES = ("cosine", "l1", "l2")


def normalized(metric: Tensor) -> Tensor:
    """(B, L, C) of norm 1 along C, in fp32 so that half precision does not make ties (float64 stays)."""
    return F.normalize(metric if metric.dtype == torch.float64 else metric.float(), dim=-1)


def similarity(sources: Tensor, destinations: Tensor, distance: str = "cosine") -> Tensor:
    """(B, S, C), (B, D, C), normalised -> (B, S, D), the larger the more alike.

    Raises:
        ValueError: an unknown distance.
    """
    if distance not in DISTANCES:
        raise ValueError(f"match: distance={distance!r}; expected one of {DISTANCES}")
    if distance == "cosine":
        return sources @ destinations.transpose(1, 2)
    if distance == "l1":
        return -torch.cdist(sources, destinations, p=1.0)
    mode = "donot_use_mm_for_euclid_dist"
    return -torch.cdist(sources, destinations, p=2.0, compute_mode=mode)
