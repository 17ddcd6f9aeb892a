"""The released code's names of the merge settings: read by `MergeConfig.from_released` and by the command lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

# The dense 224-pixel model's token count, and the tokens that one unit of ``compare`` stands for.
_TOKENS, _STEP = 197, 11


class Released(NamedTuple):
    """Our field, and what turns the released value into ours (None: it is the same)."""

    field: str
    read: Callable[[Any], Any] | None = None


def parse_choose(choose: str) -> int:
    """Neighbour rank of the released ``choose`` option: ``max`` is 1, ``3c`` is 3, and so on."""
    if choose == "max":
        return 1
    if isinstance(choose, str) and choose.endswith("c") and choose[:-1].isdigit() and int(choose[:-1]) > 0:
        return int(choose[:-1])
    raise ValueError(f"choose={choose!r}; expected 'max' or a rank such as '3c', '5c', '14c'")


def final_tokens_from_compare(compare: int) -> int:
    """Final token count of the released ``compare`` option: ``197 - 11 * compare``, at least 1."""
    if not isinstance(compare, int) or isinstance(compare, bool) or compare < 0:
        raise ValueError(f"compare={compare!r}; expected an integer of 0 or more (the released default is 11)")
    return max(1, _TOKENS - _STEP * compare)


def _shuffle(value: bool | str) -> str | None:
    return value if isinstance(value, str) else "random" if value else None


RELEASED = {
    "num_prune": Released("r"),
    "merge_interval": Released("interval"),
    "if_merge_odd": Released("odd"),
    "metric": Released("metric"),
    "distance": Released("distance"),
    "merge_mode": Released("mode"),
    "choose": Released("neighbour", parse_choose),
    "if_prune": Released("prune"),
    "if_pruning": Released("prune"),
    "if_order": Released("keep_order"),
    "compare": Released("final_tokens", final_tokens_from_compare),
    "if_shuffle": Released("shuffle", _shuffle),
    "shuffle_rate": Released("shuffle_rate"),
}
