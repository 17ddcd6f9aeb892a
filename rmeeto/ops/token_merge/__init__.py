"""Token merging of one block: which tokens go into which, and their size-weighted average, with its backends."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from rmeeto.merge import MergePlan, Tokens
from rmeeto.merge.rules import exact
from rmeeto.ops import triton_support
from rmeeto.ops.backend import Backend, Operator
from rmeeto.ops.cpp_support import built
from rmeeto.ops.token_merge import cpp, naive

_TRITON = "rmeeto.ops.token_merge.triton_"

MATCH = Operator(
    "match_tokens",
    [
        Backend("triton", ("cuda",), lambda: triton_support.implementation(_TRITON + "match", "match_tokens")),
        Backend("cpp", ("cpu",), partial(built, cpp.match_tokens)),
        Backend("torch", ("any",), lambda: naive.naive_match_tokens),
    ],
    whole=cpp.match_tokens,
)
MERGE = Operator(
    "merge_tokens",
    [
        Backend("triton", ("cuda",), lambda: triton_support.implementation(_TRITON + "merge", "merge_tokens")),
        Backend("cpp", ("cpu",), partial(built, cpp.merge_tokens)),
        Backend("torch", ("any",), lambda: naive.naive_merge_tokens),
    ],
    whole=cpp.merge_tokens,
)


def match_tokens(
    metric: Tensor,
    r: int,
    tokens: Tokens,
    *,
    distance: str = "cosine",
    neighbour: int = 1,
    backend: str = "auto",
) -> MergePlan:
    """The rule `exact` of `rmeeto.merge`, on the device's kernels where they have it: the paper's default matching.

    Kernels have the most similar destination by cosine, tokens of a scan that keep their order, and a class token that
    is set aside; all else is the definition's. Ties go to the lower position.

    Args:
        metric: (B, L, C) tensor to measure similarity on; no gradient flows through it.
        r: tokens to remove, 1 to ``tokens.limit``.
        tokens: their layout.
        distance, neighbour: as of `exact`.
        backend: ``auto`` or a backend's name.

    Raises:
        ValueError: r or the class index is out of range (values on a GPU are not read), or there is not one class
            index per sample.

    Source: R-MeeTo, arXiv 2412.12496, section 3.
    """
    batch, index = metric.shape[0], tokens.class_index
    on_kernels = distance == "cosine" and neighbour == 1 and tokens.keep_order and index is not None
    if not on_kernels:
        return exact(metric.detach(), r, tokens, distance=distance, neighbour=neighbour)
    if metric.shape[1] != tokens.num or not 1 <= r == tokens.limit(r):
        raise ValueError(
            f"match_tokens: r={r}; expected 1 to {tokens.limit(tokens.num)} for {metric.shape[1]} tokens of {tokens}"
        )
    if isinstance(index, Tensor) and index.shape != (batch,):
        raise ValueError(
            f"match_tokens: class_index has shape {tuple(index.shape)}; expected ({batch},), one per sample"
        )
    return MATCH.implementation(metric.device.type, backend)(metric.detach(), r, tokens)


def merge_tokens(
    hidden: Tensor, residual: Tensor | None, size: Tensor | None, plan: MergePlan, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Merge the tokens of ``residual + hidden`` as a plan says, weighted by their sizes, in one pass.

    Args:
        hidden: (B, L, C).
        residual: (B, L, C) in fp32, or None.
        size: (B, L, 1) how many original tokens each token stands for; None means 1. No gradient flows through it.
        plan: from `match_tokens`; sources that it would prune are merged.
        backend: ``auto`` or a backend's name.

    Returns:
        (B, L - r, C) ``sum(x * size) / sum(size)`` over a token and those that go into it, and the new sizes
        (B, L - r, 1).
    """
    return MERGE.implementation(hidden.device.type, backend)(hidden, residual, size, plan)
