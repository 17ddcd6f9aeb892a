"""Models by timm's own names: made by timm, merged by `rmeeto.apply`; and what to say of a name that nobody knows."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterable
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, list_models, model_entrypoint
from torch import nn

from rmeeto.engine.progress import WIDTH
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from rmeeto.patch import apply

FAMILIES = ("vit_*", "deit*", "eva*")  # of timm, most of whose models can merge


def is_timms(name: str) -> bool:
    """Whether a name, with or without the tag of its weights, is one of timm's own models."""
    return timm.is_model(name) and model_entrypoint(name.partition(".")[0]).__module__.startswith("timm.")


def input_size(name: str) -> tuple[int, int, int]:
    """Channels, height and width of the images that a model of timm's is meant for."""
    return get_pretrained_cfg(name).input_size


def create_timms(name: str, merge: MergeConfig | None = None, **arguments: Any) -> nn.Module:
    """A model of timm's that merges; ``pretrained_cfg["input_size"]`` is the shape of its input, as ours have it.

    Raises:
        UserError: timm has it, and `rmeeto.apply` cannot merge in it; or an argument that it does not take.
    """
    try:
        model = timm.create_model(name, **arguments)
    except (TypeError, RuntimeError) as error:  # arguments of another family; a tag that does not exist
        raise UserError(f"--model {name}: timm does not make it: {error}") from None
    try:
        apply(model, merge)
    except UserError as error:
        raise UserError(f"--model {name}: {str(error).removeprefix('apply: ')}") from None
    size = model.patch_embed.img_size
    if size[0] != size[1]:
        raise UserError(f"--model {name} sees {size[1]} x {size[0]} pixels; expected a square")
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (input_size(name)[0], *size)}
    if model.num_prefix_tokens == 1 and not model.no_embed_class:
        model.class_index = 0  # by which a position embedding of another grid is resized
    return model


def unknown(name: str, models: Iterable[str], aliases: Iterable[str], timms: bool = False) -> UserError:
    """The error for a name that is none: close ones, else all of them, grouped by family and in lines of 80 columns.

    Args:
        models, aliases: the task's.
        timms: whether it takes timm's models too.
    """
    models, aliases = list(models), list(aliases)
    prefixes = ("", "rmeeto_", "RMeeTo_")
    known = {full.removeprefix(prefix): full for prefix in prefixes for full in [*models, *aliases]}
    known |= {form.partition("_patch")[0]: known[form] for form in reversed(list(known))}
    known |= {full: full for full in list_models(list(FAMILIES))} if timms else {}
    words = re.split(r"[-_.]+", name.lower())
    holding = sorted((form for form in known if all(word in form.lower() for word in words)), key=len)
    close = list(dict.fromkeys(known[form] for form in (*holding, *difflib.get_close_matches(name, known, 3))))[:3]
    if close:
        return UserError(f"unknown --model {name!r}; did you mean {' or '.join(close)}?")
    families: dict[str, list[str]] = {}
    for full in models:
        families.setdefault(full.partition("_")[0], []).append(full)
    lines = [f"unknown --model {name!r}; known are"]
    for group in (*families.values(), aliases):
        lines += textwrap.wrap(", ".join(group), WIDTH, initial_indent="  ", subsequent_indent="    ")
    if timms:
        lines.append(f"  timm's Vision Transformers: timm.list_models({list(FAMILIES)})")
    return UserError(*lines)


def create_model(name: str, *, seed: int, **arguments: Any) -> nn.Module:
    """A model of ours or of timm's whose weights are drawn from a seed.

    Args:
        arguments: of the model; those that are None are left out.

    Raises:
        UserError: settings that the model refuses.
    """
    torch.manual_seed(seed)
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        return create_timms(name, **given) if is_timms(name) else timm.create_model(name, **given)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None
