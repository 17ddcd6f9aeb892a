"""Token merging of one block: which tokens go into which, and their size-weighted average, with its backends."""

from __future__ import annotations

from torch import Tensor

from rmeeto.ops import triton_support
from rmeeto.ops.backend import Backend, Operator
from rmeeto.ops.token_merge import cpp, naive

_TRITON = "rmeeto.ops.token_merge.triton_"

MATCH = Operator(
    "match_tokens",
    [
        Backend(
            "triton", ("cuda",), lambda: triton_support.implementation(_TRITON + "match", "match_tokens")
        ),
        Backend("cpp", ("cpu",), lambda: cpp.load()[0]),
        Backend("torch", ("any",), lambda: naive.naive_match_tokens),
    ],
)
MERGE = Operator(
    "merge_tokens",
    [
        Backend(
            "triton", ("cuda",), lambda: triton_support.implementation(_TRITON + "merge", "merge_tokens")
        ),
        Backend("cpp", ("cpu",), lambda: cpp.load()[1]),
        Backend("torch", ("any",), lambda: naive.naive_merge_tokens),
    ],
)


def match_tokens(
    metric: Tensor, r: int, class_index: int | Tensor, exact: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
    """Choose the r sources most similar to a destination, survivors in order: the paper's default matching.

    One token is set aside. Of the others, even ones are sources and odd ones destinations; each source picks the
    destination of largest cosine similarity, and the r best pairs merge. Ties go to the lower position.

    Args:
        metric: (B, L, C) tensor to measure similarity on; no gradient flows through it.
        r: tokens to remove, 1 to (L - 1) // 2.
        class_index: position of the token that is set aside, an int or a (B,) tensor.
        exact: put that token behind the tokens that really stay before it, sample by sample; else at
            ``floor(class_index * (L - r) / L)``.
        backend: ``auto`` or a backend's name.

    Returns:
        keep (B, L - r): position, before the merge, of each token that stays. source (B, r): that of each token that
        goes, best pair first. destination (B, r): position, after the merge, of the token that it goes into. And the
        new class index: a (B,) tensor if ``exact`` or if it was one, else an int.

    Raises:
        ValueError: r or the class index is out of range (values on a GPU are not read), or there is not one class
            index per sample.

    Source: R-MeeTo, arXiv 2412.12496, section 3.
    """
    batch, num_tokens = metric.shape[:2]
    if not 1 <= r <= (num_tokens - 1) // 2:
        raise ValueError(
            f"match_tokens: r={r}; expected 1 to {(num_tokens - 1) // 2} for {num_tokens} tokens"
        )
    if isinstance(class_index, int) and not 0 <= class_index < num_tokens:
        raise ValueError(f"match_tokens: class_index={class_index}; expected 0 to {num_tokens - 1}")
    if isinstance(class_index, Tensor) and class_index.shape != (batch,):
        raise ValueError(
            f"match_tokens: class_index has shape {tuple(class_index.shape)}; expected ({batch},), one per sample"
        )
    return MATCH.implementation(metric.device.type, backend)(metric.detach(), r, class_index, exact)


def merge_tokens(
    hidden: Tensor,
    residual: Tensor | None,
    size: Tensor | None,
    keep: Tensor,
    source: Tensor,
    destination: Tensor,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Merge the tokens of ``residual + hidden`` as a matching says, weighted by their sizes, in one pass.

    Args:
        hidden: (B, L, C).
        residual: (B, L, C) in fp32, or None.
        size: (B, L, 1) how many original tokens each token stands for; None means 1. No gradient flows through it.
        keep, source, destination: from `match_tokens`.
        backend: ``auto`` or a backend's name.

    Returns:
        (B, L - r, C) ``sum(x * size) / sum(size)`` over a token and those that go into it, and the new sizes
        (B, L - r, 1).
    """
    implementation = MERGE.implementation(hidden.device.type, backend)
    return implementation(hidden, residual, size, keep, source, destination)
