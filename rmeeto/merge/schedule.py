"""Which blocks merge, and how many tokens each removes. Plain integers: shapes stay static."""

from __future__ import annotations

from rmeeto.merge.config import MergeConfig
from rmeeto.merge.tokens import Tokens, number


def merging_blocks(depth: int, interval: int = 2, odd: bool = False) -> list[int]:
    """Indices of the blocks that start with a merge: ``i > 0`` and ``i % interval == 0`` (odd: ``(i + 1) %``)."""
    return [i for i in range(1, depth) if (i + odd) % interval == 0]


def removals_asked(config: MergeConfig, num_merges: int) -> list[int] | None:
    """r of each merge before clamping; None where it is a share of the tokens that enter it.

    Raises:
        ValueError: a list in ``config.r`` whose length is not the number of merging blocks.
    """
    if isinstance(config.r, float):
        return None
    if isinstance(config.r, int):
        return [config.r] * num_merges
    if config.inflection is not None:
        return _inflected(int(config.r[0]), config.inflection, num_merges)
    if len(config.r) != num_merges:
        raise ValueError(
            f"MergeConfig: r lists {len(config.r)} values, but {num_merges} blocks merge "
            f"(interval={config.interval}, odd={config.odd}); give one per merging block"
        )
    return [int(value) for value in config.r]


def _inflected(r: int, inflection: float, num_merges: int) -> list[int]:
    if num_merges < 2:
        return [r] * num_merges
    totals, total = [0], 0.0
    for i in range(num_merges):
        total += r * (1 + inflection * (2 * i / (num_merges - 1) - 1))
        totals.append(round(total))  # rounding the running total keeps the sum at r * num_merges
    return [after - before for before, after in zip(totals, totals[1:], strict=False)]


def removals(config: MergeConfig | None, depth: int, num_tokens: int, *, prefix: int | None = None) -> list[int]:
    """Tokens that each block really removes (before it mixes; in a Transformer after its attention).

    Args:
        config: settings, or None for the dense model.
        depth: number of blocks.
        num_tokens: tokens entering block 0, the class token counted.
        prefix: in a Transformer, where every block merges, how many tokens never merge.
    """
    return [removed for _, removed in asked_and_removed(config, depth, num_tokens, prefix=prefix)]


def asked_and_removed(
    config: MergeConfig | None, depth: int, num_tokens: int, *, prefix: int | None = None
) -> list[tuple[int | None, int]]:
    """The r that each block is asked for (None: it does not merge), and what it really removes; as in `removals`."""
    counts: list[tuple[int | None, int]] = [(None, 0)] * depth
    num_tokens = number(num_tokens)
    if config is None:
        return counts
    blocks = range(depth) if prefix is not None else merging_blocks(depth, config.interval, config.odd)
    asked = removals_asked(config, len(blocks))
    for index, block in enumerate(blocks):
        r = asked[index] if asked is not None else round(float(config.r) * num_tokens)  # type: ignore[arg-type]
        if block == blocks[-1] and config.final_tokens is not None:
            r = num_tokens - config.final_tokens  # below 0 where fewer are left: the released counter takes that, too
        removed = Tokens(num_tokens, None if prefix is not None else 0, prefix).limit(r)
        counts[block] = r, removed
        num_tokens -= removed
    return counts


def token_counts(config: MergeConfig | None, depth: int, num_tokens: int, *, prefix: int | None = None) -> list[int]:
    """Number of tokens that each block's mixer (attention) sees, class token counted. Arguments as in `removals`."""
    removed = removals(config, depth, num_tokens, prefix=prefix)
    if prefix is not None:  # a Transformer's block merges after its attention
        removed = [0, *removed[:-1]]
    return [num_tokens - sum(removed[: block + 1]) for block in range(depth)]


def check_neighbour(name: str, config: MergeConfig, depth: int, num_tokens: int, *, prefix: int | None = None) -> None:
    """Refuse a ``config.neighbour`` that a merge of the model ``name`` has too few destinations for.

    Args:
        name: of the model, for the error.
        config, depth, num_tokens, prefix: as in `removals`.

    Raises:
        ValueError: too few destinations.
    """
    for removed in removals(config, depth, num_tokens, prefix=prefix):
        available = Tokens(num_tokens, None if prefix is not None else 0, prefix).num_destinations
        if removed and config.neighbour > available:
            raise ValueError(
                f"{name}: neighbour={config.neighbour}, but a merge of {num_tokens} tokens has only {available} "
                "destinations; use a smaller neighbour or a smaller r"
            )
        num_tokens -= removed
