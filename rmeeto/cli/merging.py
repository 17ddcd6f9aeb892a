"""The flags of a merge setting, with the released recipes' names, and the model names that fix a part of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from rmeeto.cli.flags import Flag, converter, parse_bool
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from rmeeto.merge.released import final_tokens_from_compare, parse_choose

# Which settings have no effect, why, and whether that is an error (else a notice).
Effects = Iterator[tuple[Sequence[str], str, bool]]


def _read_r(text: str) -> int | list[int | float]:
    try:
        values = [float(part) if "." in part else int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; expected an integer, one a merging block (5,5,6,...), or r,inflection (8,-1.0)."
        ) from None
    return values[0] if len(values) == 1 and isinstance(values[0], int) else values


def _read_method(text: str) -> bool:
    if text.lower() not in ("tome", "none"):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected ToMe or none.")
    return text.lower() == "tome"


def _read_choose(text: str) -> int:
    try:
        return parse_choose(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _read_compare(text: str) -> int:
    try:
        return final_tokens_from_compare(int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; expected an integer of 0 or more (released: 11)."
        ) from None


def _read_shuffle(text: str) -> str | None:
    if text.lower() == "odd-even":
        return "odd-even"
    return "random" if parse_bool(text) else None


def read_window(text: str) -> tuple[int, int, int] | None:
    if text.lower() in ("", "none"):
        return None
    try:
        frames, rows, columns = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; expected frames,rows,columns such as 2,3,3, or none."
        ) from None
    return frames, rows, columns


MERGE_FLAGS = {
    "merge_method": Flag("merge.method", _read_method, "ToMe, or none for the dense model (default: ToMe)"),
    "num_prune": Flag("merge.r", _read_r, "tokens that each merge removes: 5, or 5,5,6,... (default: 0); "
                      "torchrun takes --r for one of its own flags, so write --num_prune there", ("r",)),
    "merge_interval": Flag("merge.interval", converter(int), "merge in every n-th block (default: 2)"),
    "if_merge_odd": Flag("merge.odd", parse_bool, "merge in the odd blocks", switch=True),
    "metric": Flag("merge.metric", str, "similarity of X, B, C, delta; DeiT: X, Q, K, V (default: X)"),
    "distance": Flag("merge.distance", str, "cosine, l1 or l2 (default: cosine)"),
    "merge_mode": Flag("merge.mode", str, "sum, mean, amax or amin (default: sum)"),
    "choose": Flag("merge.neighbour", _read_choose, "merge with the most similar token (max), the 3rd (3c) ..."),
    "if_pruning": Flag("merge.prune", parse_bool, "drop tokens instead of merging them", ("if_prune",), True),
    "if_order": Flag("merge.keep_order", parse_bool, "keep the order (default: False; of clips: True)", switch=True),
    "class_position": Flag("merge.class_position", str, "proportional or exact (default: proportional)"),
    "compare": Flag("merge.final_tokens", _read_compare, "the last merge leaves 197 - 11 n tokens"),
    "final_tokens": Flag("merge.final_tokens", converter(int | None), "the last merge leaves that many tokens"),
    "if_shuffle": Flag("merge.shuffle", _read_shuffle, "shuffle first: True (at random) or odd-even", switch=True),
    "shuffle_rate": Flag("merge.shuffle_rate", converter(float), "share of tokens that --if_shuffle permutes"),
    "window": Flag("merge.window", read_window, "look for similar tokens within frames,rows,columns: 2,3,3"),
    "released_flip": Flag("merge.released_flip", parse_bool, "B, C, delta flipped as released", switch=True),
}  # fmt: skip


def canonical(
    model: str, models: Mapping[str, Any], aliases: Mapping[str, tuple[str, str]]
) -> tuple[str, str]:
    """Our name of a model, and what the name fixes: "any", "merged", "shuffle" or "dense".

    Raises:
        UserError: an unknown name.
    """
    name, kind = aliases.get(model, (model, "any"))
    if name not in models:
        raise UserError(f"unknown --model {model!r}; known: {', '.join([*models, *aliases])}.")
    return name, kind


def merge_settings(
    start: dict[str, Any] | None, given: dict[str, Any], written: dict[str, str], kind: str, keep_order: bool
) -> dict[str, Any] | None:
    """The merge section: what a command line says, over a starting point.

    Args:
        start: settings in their plain form, or None for the dense model.
        given: values by section.field.
        written: the flags as they were written.
        kind: what the model's name fixes, see `canonical`.
        keep_order: whether tokens keep their order where neither says so.

    Returns:
        A `MergeConfig` in its plain form, or None.

    Raises:
        UserError: settings for a dense model, or a shuffle that says too little.
    """
    options = {dest.partition(".")[2]: value for dest, value in given.items() if dest.startswith("merge.")}
    method = options.pop("method", None)
    if method is False or kind == "dense":
        if options:
            dense = (
                "a teacher is the dense model"
                if kind == "dense"
                else "--merge_method none is the dense model"
            )
            raise UserError(
                f"{written[f'merge.{next(iter(options))}']} has no effect: {dense}; leave it out."
            )
        return None
    if start is None and not options and method is None:
        return None
    merge = {**(start or MergeConfig(keep_order=keep_order).to_dict()), **options}
    if kind == "shuffle" and merge["shuffle"] is None:
        merge["shuffle"] = "random"
    if merge["shuffle"] == "random" and not merge["shuffle_rate"]:
        raise UserError("shuffling needs a --shuffle_rate: the share of the tokens to permute, such as 0.3.")
    if "shuffle_rate" in options and merge["shuffle"] != "random":
        raise UserError("--shuffle_rate has no effect without --if_shuffle; add that or leave it out.")
    return merge


def merge_notes(name: str, model: nn.Module, merge: MergeConfig | None) -> list[str]:
    """What a merge setting does not do to a model, in lines to print.

    Raises:
        UserError: a setting that merges nothing at all.
    """
    if merge is None or not merge.is_active:
        return []
    tokens = model.num_tokens
    if merge.shuffle is None and tokens[0] == tokens[-1]:
        final = "" if merge.final_tokens is None else f", final_tokens={merge.final_tokens}"
        raise UserError(
            f"{name}: r={merge.r} has no effect: with interval={merge.interval}, odd={merge.odd}{final} none of its "
            f"{len(tokens)} blocks merges any of its {tokens[0]} tokens; lower --merge_interval, or use --num_prune 0."
        )
    if merge.final_tokens in (None, tokens[-1]):
        return []
    return [
        f"{name}: the last merge leaves {tokens[-1]} tokens, not the {merge.final_tokens} asked for: "
        "it takes at most half of what is there, and adds none"
    ]
