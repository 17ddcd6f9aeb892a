"""What the config.json of a model folder may say: what `rmeeto.hub.export` writes for that model, within bounds.

A folder comes from anybody. What it says is passed to timm, which takes arguments that fetch and open files as well;
so each name is looked up here, and each value is compared with its type, before timm sees them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import is_model, model_entrypoint

from rmeeto.errors import UserError
from rmeeto.json_file import read_json
from rmeeto.merge import RULES, MergeConfig
from rmeeto.registry import arguments_of
from rmeeto.settings import accepts, describe, from_plain

_LARGEST = 2**20  # of a whole number: pixels, channels, blocks
_LONGEST = 100  # characters of a text, entries of a list
# timm's Vision Transformers, which have merging by `rmeeto.apply`, and those of their arguments that are plain values.
_TRANSFORMERS = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")
_SIDES = int | tuple[int, int]
_TRANSFORMER: dict[str, Any] = {
    "img_size": _SIDES, "patch_size": _SIDES, "in_chans": int, "num_classes": int, "embed_dim": int, "depth": int,
    "num_heads": int, "mlp_ratio": float, "qkv_bias": bool, "qk_norm": bool, "init_values": float | None,
    "class_token": bool, "no_embed_class": bool, "reg_tokens": int, "pre_norm": bool, "final_norm": bool,
    "fc_norm": bool | None, "global_pool": str, "dynamic_img_size": bool,
}  # fmt: skip
_NAMES = str | tuple[str, ...]
_CFG: dict[str, Any] = {
    "input_size": tuple[int, int, int], "fixed_input_size": bool, "interpolation": str, "crop_pct": float,
    "mean": tuple[float, ...], "std": tuple[float, ...], "first_conv": _NAMES | None, "classifier": _NAMES,
    "num_classes": int,
}  # fmt: skip

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def read_description(path: Path) -> tuple[str, dict[str, Any], dict[str, Any] | None, MergeConfig | None]:
    """The config.json of a model folder.

    Returns:
        The model's name, its arguments, its ``pretrained_cfg`` or None, how it merges or None.

    Raises:
        UserError: it is missing or no such file, names a model that is not known here, or says what export does not.
    """
    if not path.exists():
        raise UserError(f"load: there is no {path}; expected a folder with config.json and model.safetensors")
    config = read_json(path)
    name = config.get("architecture")
    if not isinstance(name, str):
        raise UserError(f"load: {path} names no architecture; expected a model's config as export writes it")
    known = _arguments_of(name) if is_model(name) else None
    if known is None:
        raise UserError(
            f"load: {path} names the model {name[:_LONGEST]!r}, which is not known here; image_task.models and "
            "video_task.models register theirs when they are imported, and timm's Vision Transformers are known"
        )
    arguments, cfg = (config.get(key) or {} for key in ("model_args", "pretrained_cfg"))
    merge = arguments.pop("merge", None) if isinstance(arguments, dict) else None
    _check(arguments, known, f"load: {path} does not describe a {name}: model_args")
    _check(cfg, _CFG, f"load: {path} does not describe a {name}: pretrained_cfg")
    for key, expected in unfit_input(cfg).items():
        raise UserError(f"load: {path}: pretrained_cfg has {key}={_short(cfg[key])}; expected {expected}")
    rule = merge.get("rule") if isinstance(merge, dict) else None
    if isinstance(rule, str) and rule not in RULES:
        raise UserError(
            f"load: {path} merges by the rule {rule!r}, which is code of a module; if you trust it, take it out of the "
            "file and say it yourself: rmeeto.apply(model, MergeConfig(rule=...))"
        )
    try:
        merge = None if merge is None else from_plain(MergeConfig, merge, "merge")
    except ValueError as error:
        raise UserError(f"load: {path} does not describe a {name}: {error}") from None
    return name, _tuples(arguments), _tuples(cfg) or None, merge


def unfit_input(cfg: Mapping[str, Any]) -> dict[str, str]:
    """What is said of a model's input by which none can be prepared, and what would be right; absent is right."""
    size, mean, std, share, word = map(cfg.get, ("input_size", "mean", "std", "crop_pct", "interpolation"))
    numbers = {1, 3, *(size or ())[:1]}  # of channels; of pictures that a model of one channel is given in grey, too
    fits = {
        "input_size": (size is None or all(1 <= side <= 2**14 for side in size), "sides from 1 to 16384"),
        "mean": (mean is None or len(mean) in numbers, "a number a channel"),
        "std": (std is None or (len(std) in numbers and min(std) > 0), "a number above 0 a channel"),
        "crop_pct": (share is None or 0 < share <= 1, "a share above 0, at most 1"),
        "interpolation": (word is None or word in _INTERPOLATIONS, f"one of {', '.join(_INTERPOLATIONS)}"),
    }
    return {key: expected for key, (is_right, expected) in fits.items() if not is_right}


_OWN = ("merge", "mixer")  # of a model's parameters: read by itself, and nothing that a file could hold


def _arguments_of(name: str) -> dict[str, Any] | None:
    """The arguments of a registered model and their types; None for a model that is neither ours nor a transformer."""
    module = model_entrypoint(name).__module__
    if module in _TRANSFORMERS:
        return _TRANSFORMER
    model_class, _ = getattr(sys.modules[module], "MODELS", {}).get(name, (None, None))
    if model_class is None:
        return None
    taken = arguments_of(model_class)
    return {"global_pool": str, **{key: taken[key] for key in taken if key not in _OWN}}


def _check(values: Any, known: dict[str, Any], where: str) -> None:
    if not isinstance(values, dict):
        raise UserError(f"{where} is {_short(values)}; expected names and values, as export writes them")
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where} has {_short(key)}, which export does not write; remove it")
        if not accepts(known[key], value) or not _within(value):
            raise UserError(f"{where} has {key}={_short(value)}; expected {describe(known[key])} within bounds")


def _within(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= _LONGEST and all(map(_within, value))
    if isinstance(value, str):
        return len(value) <= _LONGEST
    return value is None or (math.isfinite(value) and 0 <= value <= _LARGEST)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def check_depth(arguments: dict[str, Any], num_tensors: int, path: Path) -> None:
    """Refuse more blocks than there are tensors: building them takes time even without memory.

    Raises:
        UserError: the number of both.
    """
    depth = arguments.get("depth", 0)
    if depth > num_tensors:
        raise UserError(f"load: {path} says depth={depth}, but there are weights of {num_tensors} tensors only")
