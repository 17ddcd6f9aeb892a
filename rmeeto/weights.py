"""Load a checkpoint into a model, or say in two lines why it does not fit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.nn.layers import grid_size, resize_pos_embed
from rmeeto.reader import Unreadable, printable, read, read_safetensors
from rmeeto.trained_on import trained_on

_PREFIXES = ("module.", "_orig_mod.")
# Entries that hold weights, in the order in which they are looked for.
_PLAIN = ("model", "state_dict", "model_state_dict", "net", "network", "module", "student", "teacher")
_AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
HEAD = ("head.weight", "head.bias")
_SHOWN = 4  # keys named per kind in an error
_LARGEST_GRID = 2**18  # patches of a position embedding that is resized: 512 x 512


@dataclass(frozen=True)
class LoadReport:
    """What was loaded: which entry of the file, how many tensors, which were resized, which the file has not."""

    path: str
    entry: str
    num_tensors: int
    resized: tuple[str, ...]
    new: tuple[str, ...] = ()


# Makes a checkpoint's tensors fit a model, in place; returns the keys that it has resized.
Adapt = Callable[[dict[str, Tensor], nn.Module], tuple[str, ...]]


def load_weights(
    model: nn.Module,
    path: str | Path,
    ema: bool | str = "auto",
    adapt: Adapt | None = None,
    *,
    new_head: bool = False,
) -> LoadReport:
    """Load weights strictly: every key, every shape.

    Args:
        model: the model; left untouched when anything is wrong. One on the meta device is only compared with the file.
        path: a file of safetensors, or of torch with the weights at the top or under ``model``, ``state_dict``,
            ``model_ema`` or another usual name. Prefixes of DDP and torch.compile are taken off, and one that stands
            before all of the model's keys, such as Lightning's ``model.``. Read without running any code of the file.
        ema: True takes ``model_ema`` (timm's ``state_dict_ema``), False the plain weights, ``auto`` the plain ones if
            the file has them, ``prefer`` ``model_ema`` if it has that.
        adapt: makes the tensors fit the model; None for `adapt_pos_embed`, which resizes a position embedding of
            another grid. A tensor that it takes from the model itself is reported as new.
        new_head: leave the model's own head as it is, whatever classes the checkpoint's has.

    Returns:
        A `LoadReport`.

    Raises:
        UserError: no such file, unreadable, damaged or truncated file, missing, unexpected or mis-shaped keys, whole
            numbers for weights, numbers that are not finite.
    """
    path = Path(path)
    content = read_checkpoint(path, mapped=True)
    known = trained_on(path, content)
    state, entry = _select(content, path, ema)
    own = dict(model.state_dict(keep_vars=True))  # once: a walk through 400 modules takes milliseconds
    state = _unprefixed(_stripped(state, path), own)
    _check_kinds(state, own, type(model).__name__, path)
    resized = (adapt or partial(adapt_pos_embed, size=known and known.input_size[-2:]))(state, model)
    if new_head:
        keep_head(state, model)
    _check(state, own, type(model).__name__, path)
    _check_finite(state, own, path)
    new = tuple(key for key, value in state.items() if value is own[key])
    if not any(value.is_meta for value in own.values()):  # which has only been compared
        with torch.no_grad():  # all that `load_state_dict` would do after the checks above, in half of its time
            for key, value in state.items():
                own[key].copy_(value)
    return LoadReport(str(path), entry, len(state) - len(new), resized, new)


def read_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file, without running any code of it.

    Args:
        path: as in `load_weights`.
        mapped: as in `rmeeto.reader.read`.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    if not os.path.isfile(path):
        kind = (
            "is a folder" if os.path.isdir(path) else "is no regular file" if os.path.exists(path) else "does not exist"
        )
        raise UserError(f"weights: {path} {kind}; expected a .safetensors, .pth or .pt file")
    try:
        content = read_safetensors(path) if _is_safetensors(path) else read(path, mapped=mapped)
    except (Unreadable, OSError) as error:
        raise UserError(
            f"weights: {path} ({path.stat().st_size} bytes) cannot be read: {error}",
            "expected a whole checkpoint file; it may be truncated or of another kind: fetch it again",
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"weights: {path} holds a {type(content).__name__}; expected a dictionary of tensors")
    return content


def head_rows(path: Path) -> int | None:
    """Classes that the head in a file of weights tells, behind whatever prefix `load_weights` takes off.

    Returns:
        None where there is no such head.

    Raises:
        UserError: as of `load_weights`, a file that cannot be read or holds no weights.
    """
    state, _ = _select(read_checkpoint(path, mapped=True), path, "auto")
    for key, value in state.items():
        prefix = key.removesuffix(HEAD[0])
        if prefix != key and value.ndim == 2 and all(other.startswith(prefix) for other in state):
            return len(value)
    return None


def _is_safetensors(path: Path) -> bool:
    """By its name or, whatever that is, by its beginning: the length of a header in JSON."""
    if path.suffix.lower() == ".safetensors":
        return True
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") < path.stat().st_size


def _select(content: dict[str, Any], path: Path, ema: bool | str) -> tuple[dict[str, Tensor], str]:
    plain, averaged = (
        next((key for key in names if isinstance(content.get(key), dict)), None) for names in (_PLAIN, _AVERAGED)
    )
    if ema is True and averaged is None:
        if "model_ema" in content:
            raise UserError(
                f"weights: {path} has no averaged weights: its run kept none (--model_ema); load the plain ones"
            )
        raise UserError(f"weights: {path} has no entry model_ema; it has {_names(content)}; load it without EMA")
    if ema == "prefer":
        entry = averaged or plain
    else:
        entry = averaged if ema is True else plain or (averaged if ema == "auto" else None)
    state = content if entry is None else content[entry]
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(
            f"weights: {path} has {_names(content)}; expected tensors at the top, or under {', '.join(_PLAIN)} or "
            f"{', '.join(_AVERAGED)}"
        )
    return state, entry or "top level"


def _stripped(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        while (bare := key.removeprefix(_PREFIXES[0]).removeprefix(_PREFIXES[1])) != key:
            key = bare
        if key in found:
            raise UserError(
                f"weights: {path} holds {key} twice, once behind {' or '.join(_PREFIXES)}; give a file with one of them"
            )
        found[key] = value
    return found


def _unprefixed(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without a prefix that stands before each of the model's keys, but perhaps those of its head."""
    wanted = [key for key in own if key not in HEAD]
    if not wanted or any(key in state for key in wanted):
        return state
    for prefix in (key.removesuffix(wanted[0]) for key in state if key.endswith("." + wanted[0])):
        bare = {key.removeprefix(prefix): value for key, value in state.items()}
        if len(bare) == len(state) and all(key in bare for key in wanted):
            return bare
    return state


def adapt_pos_embed(state: dict[str, Tensor], model: nn.Module, size: Sequence[int] | None = None) -> tuple[str, ...]:
    """Resize a position embedding of another grid to the model's, in ``state``.

    Args:
        state: tensors by key.
        model: whose grid is wanted.
        size: height and width in pixels that the embedding was trained for; None where that is not known, and where
            it has another number of entries than such pixels have patches: it is then of a square grid, or fits.

    Returns:
        The keys that were resized.
    """
    given, wanted = state.get("pos_embed"), getattr(model, "pos_embed", None)
    if given is None or wanted is None or not hasattr(model, "class_index"):
        return ()
    if given.ndim != 3 or given.shape[::2] != wanted.shape[::2]:
        return ()
    old = _grid_of(size, model)
    old = old if old is not None and math.prod(old) == given.shape[1] - 1 else None
    if given.shape == wanted.shape if old is None else old == tuple(model.patch_embed.grid_size):
        return ()
    if given.shape[1] > _LARGEST_GRID:
        return ()  # reported as a mis-shaped key, as below
    try:
        state["pos_embed"] = resize_pos_embed(given, model.patch_embed.grid_size, model.class_index, old_grid=old)
    except ValueError:
        return ()
    return ("pos_embed",)


def _grid_of(size: Sequence[int] | None, model: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of the patches of another input size."""
    if size is None or len(size) != 2:
        return None
    proj = model.patch_embed.proj
    try:
        return grid_size(tuple(size), proj.kernel_size[-1], proj.stride[-1])  # type: ignore[arg-type]
    except ValueError:
        return None


def keep_head(state: dict[str, Tensor], model: nn.Module) -> None:
    """Put the model's own head in the place of a checkpoint's, in ``state``."""
    own = dict(model.state_dict(keep_vars=True))
    for key in HEAD:
        state.pop(key, None)
        if key in own:
            state[key] = own[key]


def check_fit(state: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    """Compare the names, kinds and shapes of tensors with a model's; both may be on the meta device.

    Raises:
        UserError: what does not fit.
    """
    own = dict(model.state_dict(keep_vars=True))
    _check_kinds(state, own, type(model).__name__, path)
    _check(state, own, type(model).__name__, path)


def _check_kinds(state: dict[str, Tensor], wanted: dict[str, Tensor], model: str, path: Path) -> None:
    """Refuse whole numbers for weights, which loading would turn into floats, and the reverse."""
    other = [
        f"{key} {str(value.dtype).removeprefix('torch.')} for {str(wanted[key].dtype).removeprefix('torch.')}"
        for key, value in state.items()
        if key in wanted and value.is_floating_point() != wanted[key].is_floating_point()
    ]
    if other:
        raise UserError(
            f"weights: {path} does not fit {model}: {len(other)} of another kind of number: {_names(other)}",
            "give the checkpoint as it was trained, not one that was quantised",
        )


def _check_finite(state: dict[str, Tensor], own: dict[str, Tensor], path: Path) -> None:
    weights = {
        key: value.to(own[key].dtype).flatten()
        for key, value in state.items()
        if value.is_floating_point() and not value.is_meta and value is not own[key]
    }
    # A product with itself takes a tenth of the time, and is finite unless a number is not, or it overflows.
    if all(math.isfinite(value.dot(value)) for value in weights.values()):
        return
    wrong = [key for key, value in weights.items() if not value.isfinite().all()]
    if wrong:
        raise UserError(
            f"weights: {path} has numbers that are not finite (NaN or inf) in {len(wrong)} tensors: {_names(wrong)}",
            "its training diverged, or the file is damaged: fetch it again, or give another checkpoint",
        )


def _check(state: dict[str, Tensor], wanted: dict[str, Tensor], model: str, path: Path) -> None:
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
    headless = set(missing) == set(HEAD) and not unexpected and not shaped
    advice = (
        f"give data of {state['head.weight'].shape[0]} classes, a checkpoint for {wanted['head.weight'].shape[0]}, or "
        "--delete_head (new_head=True) for a student's new head"
        if heads and len(shaped) <= 2 and not missing and not unexpected
        else "it has no head; train one with --delete_head (new_head=True)"
        if headless
        else "give the checkpoint of this model, or the model of this checkpoint"
    )
    raise UserError(f"weights: {path} does not fit {model}: {'; '.join(parts)}", advice)


def _names(keys: Any) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(printable(str(key)) for key in keys[:_SHOWN]) + more
