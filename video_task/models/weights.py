"""Loading weights into a video model: other frames, other sizes, image models, heads of other class lists."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rmeeto import weights
from rmeeto.errors import UserError
from rmeeto.json_file import read_json
from rmeeto.nn.layers import resize_pos_embed
from rmeeto.weights import HEAD, LoadReport, keep_head
from video_task.models.videomamba import resize_temporal


def load_weights(
    model: nn.Module,
    path: str | Path,
    ema: bool | str = "auto",
    *,
    head_map: Sequence[int] | None = None,
    new_head: bool = False,
) -> LoadReport:
    """Load weights of a video or an image model strictly: every key, every shape.

    Args:
        model: the model; left untouched when anything is wrong.
        path, ema: as in `rmeeto.weights.load_weights`.
        head_map: for each class of the model the class of the checkpoint that it is; see `read_head_map`.
        new_head: leave the model's own head as it is.

    Returns:
        A `LoadReport`. Embeddings of other sizes or frames are resized. An image model's convolution is inflated
        (repeated over the frames of a tubelet and divided by their number), its frames get no temporal embedding, and
        a head of other classes than the model's stays the model's own: these keys are reported as new.

    Raises:
        UserError: as `rmeeto.weights.load_weights`, or a ``head_map`` that does not fit.
    """
    return weights.load_weights(model, path, ema, partial(adapt_clips, head_map=head_map), new_head=new_head)


def adapt_clips(
    state: dict[str, Tensor],
    model: nn.Module,
    head_map: Sequence[int] | None = None,
    size: Sequence[int] | None = None,
) -> tuple[str, ...]:
    """Make the tensors of a checkpoint fit a video model, in ``state``; returns the keys that were changed."""
    own, given = dict(model.state_dict(keep_vars=True)), dict(state)
    from_image = _inflate(state, own)
    _adapt_temporal(state, own, from_image)
    _adapt_spatial(state, model)
    if head_map is not None:
        _map_head(state, model, head_map)
    elif from_image and len(state.get("head.bias", ())) != model.num_classes:
        keep_head(state, model)
    changed = [key for key in given if key in state and state[key] is not given[key]]
    return tuple(key for key in changed if state[key] is not own.get(key))


def _inflate(state: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    """Whether the checkpoint is an image model's, whose convolution then gets the model's depth in time."""
    name = "patch_embed.proj.weight"
    given, wanted = state.get(name), own.get(name)
    if given is None or wanted is None or given.ndim != 4 or wanted.ndim != 5:
        return False
    depth = wanted.shape[2]
    # Divided by the depth, so that a still clip gives what its image gave (I3D, arXiv 1705.07750).
    state[name] = given.unsqueeze(2).repeat(1, 1, depth, 1, 1) / depth
    return True


def _adapt_temporal(state: dict[str, Tensor], own: dict[str, Tensor], from_image: bool) -> None:
    name = "temporal_pos_embedding"
    given, wanted = state.get(name), own.get(name)
    if wanted is None:
        return
    if given is None:
        if from_image:
            state[name] = wanted
        return
    if given.ndim == 3 and given.shape[::2] == wanted.shape[::2] and given.shape != wanted.shape:
        state[name] = resize_temporal(given, wanted.shape[1])


def _adapt_spatial(state: dict[str, Tensor], model: nn.Module) -> None:
    given, wanted = state.get("pos_embed"), model.pos_embed
    if given is None or given.shape == wanted.shape or given.shape[::2] != wanted.shape[::2]:
        return
    with suppress(ValueError):  # reported as a mis-shaped key
        state["pos_embed"] = resize_pos_embed(given, model.patch_embed.grid_size[1:], model.class_index)


def _map_head(state: dict[str, Tensor], model: nn.Module, head_map: Sequence[int]) -> None:
    if not state.keys() >= set(HEAD):
        raise UserError("weights: the checkpoint has no head to map classes of; leave out head_map")
    classes = state["head.weight"].shape[0]
    if len(head_map) != model.num_classes or not all(0 <= index < classes for index in head_map):
        raise UserError(
            f"weights: head_map has {len(head_map)} entries up to {max(head_map, default=0)}; expected one for each of "
            f"the model's {model.num_classes} classes, from 0 to {classes - 1}: the classes of the checkpoint"
        )
    for key in HEAD:
        state[key] = state[key][torch.tensor(head_map)]


def read_head_map(path: str | Path) -> list[int]:
    """A file that says which class of a checkpoint each class of the data is.

    Args:
        path: a JSON list; entry k is the number, in the checkpoint's head, of class k. For a K710 head and K400 data
            it has 400 entries from 0 to 709; which ones is a fact about the checkpoint's own list of classes, which
            comes with it and differs between publishers.

    Raises:
        UserError: no such file, or another content.
    """
    try:
        content = read_json(path, list)
    except UserError as error:
        raise UserError(f"--head_map {error}") from None
    if not all(type(index) is int for index in content):
        raise UserError(f"--head_map {path} holds no list of integers; expected one class number for each class.")
    return content
