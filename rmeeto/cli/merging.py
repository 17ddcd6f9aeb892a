"""The flags of a merge setting: its fields' names, and the released recipes'."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Collection
from itertools import pairwise
from typing import Any

from torch import nn

from rmeeto.cli.flags import Flag, FlagParser, Given, read_literal
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from rmeeto.merge.released import RELEASED, Released
from rmeeto.registry import ReleasedName
from rmeeto.settings import Need

FIELDS = [field.name for field in dataclasses.fields(MergeConfig)]
ACTIVE = Need(lambda config: config.merge.is_active, "r=0 merges nothing")
MERGES = Need(lambda config: not config.merge.prune, "prune=True drops tokens instead")
FLIPPED = Need(lambda config: config.merge.needs_ssm, "it is for merge.metric B, C and delta", fatal=True)
# What a merge setting has no effect without; the others need ACTIVE alone.
NEEDS = {"r": (), "mode": (ACTIVE, MERGES), "released_flip": (ACTIVE, FLIPPED)}


def add_merge_flags(parser: FlagParser, example: str, own: Collection[str] = ()) -> None:
    """One flag for each field of `MergeConfig`, and the released names beside them; `own` fields have others."""
    aliases, flags = defaultdict(list), {"merge_method": METHOD}
    for name, released in RELEASED.items():
        if released.field in own:
            continue
        if released.read is not None:
            help = f"the released name of --{released.field}"
            flags[name] = Flag("merge", released.field, _reader(released), help, name == "if_shuffle")
        elif name not in FIELDS:
            aliases[released.field].append(name)
    title = "merging" if own else "merging (torchrun has a --r of its own: write --num_prune there)"
    parser.add_section("merge", MergeConfig, title, aliases, example, own)
    parser.add_flags(flags, "merging, as in the released scripts")


def _read_method(text: str) -> bool:
    if text.lower() not in ("tome", "none"):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected ToMe or none.")
    return text.lower() == "tome"


METHOD = Flag("merge", "method", _read_method, "ToMe, or none for the dense model (default: ToMe)")


def _reader(released: Released) -> Any:
    def read(text: str) -> Any:
        try:
            return released.read(read_literal(text))  # type: ignore[misc]
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def merge_settings(start: MergeConfig | None, given: Given, released: ReleasedName | None) -> MergeConfig | None:
    """The merge section: what a command line says, over a starting point.

    Args:
        start: settings, or None for the dense model.
        given: values and flags of the section.
        released: what the model's name stands for, where it is one of the released code.

    Raises:
        UserError: settings for a dense model, or a shuffle that says too little.
        ValueError: a value out of range.
    """
    options = dict(given.values)
    method = options.pop("method", None)
    dense = released is not None and released.dense
    if dense or method is False:
        if options:
            flag = given.flags[next(iter(options))]
            reason = "a teacher" if dense else "--merge_method none"
            raise UserError(f"{flag} has no effect: {reason} is the dense model; leave it out.")
        return None
    if start is None and not options and method is None:
        return None
    fixed = released.fixed if released is not None else {}
    settings = {**(start or MergeConfig()).to_dict(), **fixed, **options}
    if settings["shuffle"] == "random" and not settings["shuffle_rate"]:
        raise UserError(
            "shuffle='random' needs a shuffle_rate: the share of the tokens to permute, such as shuffle_rate=0.3."
        )
    if ":" in str(settings["rule"]) and "" not in sys.path:
        sys.path.append("")  # a rule of the user's own, in the folder where the command is started
    return MergeConfig(**settings)


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
            f"{len(tokens)} blocks merges any of its {tokens[0]} tokens; lower merge.interval, or use r=0."
        )
    first = next((before - after for before, after in pairwise(tokens) if before != after), 0)
    if merge.final_tokens is None and isinstance(merge.r, int) and 0 < first < merge.r:
        return [f"{name}: r={merge.r} is more than a merge can take: the first takes {first} of {tokens[0]} tokens"]
    if merge.final_tokens in (None, tokens[-1]):
        return []
    return [
        f"{name}: the last merge leaves {tokens[-1]} tokens, not the {merge.final_tokens} asked for: "
        "it takes at most half of what is there, and adds none"
    ]
