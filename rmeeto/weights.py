"""Load a checkpoint into a model, or say in two lines why it does not fit."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from rmeeto.errors import UserError, why_unreadable
from rmeeto.nn.layers import resize_pos_embed

# Official files pickle the training script's options beside the weights. Nothing else in a file may run or be built.
_ALLOWED = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    np.ndarray,
    np._core.multiarray.scalar,
    np._core.multiarray._reconstruct,
    *(
        getattr(np.dtypes, name)
        for name in np.dtypes.__all__
        if name.endswith(("Float64DType", "Int64DType"))
    ),
]
_PREFIXES = ("module.", "_orig_mod.")
HEAD = ("head.weight", "head.bias")
_SHOWN = 4  # keys named per kind in an error


@dataclass(frozen=True)
class LoadReport:
    """What was loaded: which entry of the file, how many tensors, which were resized, which the file has not."""

    path: str
    entry: str
    num_tensors: int
    resized: tuple[str, ...]
    new: tuple[str, ...] = ()


# Makes a checkpoint's tensors fit a model, in place; returns the keys that it has resized.
Fit = Callable[[dict[str, Tensor], nn.Module], tuple[str, ...]]


def load_weights(
    model: nn.Module,
    path: str | Path,
    ema: bool | str = "auto",
    fit: Fit | None = None,
    *,
    new_head: bool = False,
) -> LoadReport:
    """Load weights strictly: every key, every shape.

    Args:
        model: the model; left untouched when anything is wrong.
        path: ``.safetensors``, or a ``.pth`` / ``.pt`` file with the weights at the top or under ``model``,
            ``state_dict`` or ``model_ema``. DDP's ``module.`` prefix is taken off. Read without running any code of
            the file.
        ema: True takes ``model_ema``, False the plain weights, ``auto`` the plain ones if the file has them, ``prefer``
            ``model_ema`` if it has that.
        fit: makes the tensors fit the model; None for `fit_pos_embed`, which resizes a position embedding of
            another grid. A tensor that it takes from the model itself is reported as new.
        new_head: leave the model's own head as it is, whatever classes the checkpoint's has.

    Returns:
        A `LoadReport`.

    Raises:
        UserError: no such file, unreadable or truncated file, missing, unexpected or mis-shaped keys.
    """
    path = Path(path)
    state, entry = _select(read_checkpoint(path), path, ema)
    state = {_strip(key): value for key, value in state.items()}
    resized = (fit or fit_pos_embed)(state, model)
    if new_head:
        keep_head(state, model)
    _check(state, model, path)
    own = dict(model.state_dict(keep_vars=True))
    new = tuple(key for key, value in state.items() if value is own[key])
    model.load_state_dict(state)
    return LoadReport(str(path), entry, len(state) - len(new), resized, new)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, without running any code of it.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"weights: {path} {kind}; expected a .safetensors, .pth or .pt file")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged or foreign file raises nearly anything
        raise UserError(
            f"weights: {path} ({path.stat().st_size} bytes) cannot be read: {why_unreadable(error)}",
            "expected a whole checkpoint file; it may be truncated or of another kind: fetch it again",
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"weights: {path} holds a {type(content).__name__}; expected a dictionary of tensors")
    return content


def _select(content: dict[str, Any], path: Path, ema: bool | str) -> tuple[dict[str, Tensor], str]:
    plain = next((key for key in ("model", "state_dict") if isinstance(content.get(key), dict)), None)
    averaged = "model_ema" if isinstance(content.get("model_ema"), dict) else None
    if ema is True and averaged is None:
        if "model_ema" in content:
            raise UserError(
                f"weights: {path} has no averaged weights: its run kept none (--model_ema); load the plain ones"
            )
        raise UserError(
            f"weights: {path} has no entry model_ema; it has {_names(content)}; load it without EMA"
        )
    if ema == "prefer":
        entry = averaged or plain
    else:
        entry = averaged if ema is True else plain or (averaged if ema == "auto" else None)
    state = content if entry is None else content[entry]
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"weights: {path} has {_names(content)}; expected tensors at the top, or under model, state_dict "
            "or model_ema"
        )
    return state, entry or "top level"


def _strip(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def fit_pos_embed(state: dict[str, Tensor], model: nn.Module) -> tuple[str, ...]:
    """Resize a position embedding of another grid to the model's, in ``state``; returns the keys that were."""
    given, wanted = state.get("pos_embed"), getattr(model, "pos_embed", None)
    if given is None or wanted is None or not hasattr(model, "class_index"):
        return ()
    if given.shape == wanted.shape or given.shape[::2] != wanted.shape[::2]:
        return ()
    try:
        state["pos_embed"] = resize_pos_embed(given, model.patch_embed.grid_size, model.class_index)
    except ValueError:
        return ()  # reported as a mis-shaped key
    return ("pos_embed",)


def keep_head(state: dict[str, Tensor], model: nn.Module) -> None:
    """Put the model's own head in the place of a checkpoint's, in ``state``."""
    own = dict(model.state_dict(keep_vars=True))
    for key in HEAD:
        state.pop(key, None)
        if key in own:
            state[key] = own[key]


def _check(state: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if not (missing or unexpected or shaped):
        return
    parts = [
        f"{len(keys)} {kind}: {_names(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", shaped))
        if keys
    ]
    heads = any(text.startswith("head.weight ") for text in shaped)
    advice = (
        f"give data of {state['head.weight'].shape[0]} classes, a checkpoint for {wanted['head.weight'].shape[0]}, or "
        "--delete_head (new_head=True) for a student's new head"
        if heads and len(shaped) <= 2 and not missing and not unexpected
        else "give the checkpoint of this model, or the model of this checkpoint"
    )
    raise UserError(f"weights: {path} does not fit {type(model).__name__}: {'; '.join(parts)}", advice)


def _names(keys: Any) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(str(key) for key in keys[:_SHOWN]) + more
