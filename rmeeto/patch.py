"""Token merging in a model that exists already: one line puts it in, one takes it out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig, TokenState, check_neighbour, removals, token_counts
from rmeeto.merge.state import own_places
from rmeeto.nn import MergingTransformer, VisionMamba
from rmeeto.nn.attention import merge_separately
from rmeeto.nn.block import plan_merge
from rmeeto.nn.features import unmerge
from rmeeto.nn.swap import Swapped, swap, unswap
from rmeeto.nn.transformer import FAMILIES, why_not

_OURS = (VisionMamba, MergingTransformer)
_STEM_SEED = 0


def apply(model: nn.Module, config: MergeConfig | None, example: Tensor | None = None) -> nn.Module:
    """Make a model merge tokens, in place; on a model that merges already, re-configure it.

    The model keeps its parameters, state dict and call: tensor in, tensor out. It gains ``merge_config`` (assign to
    re-configure) and ``num_tokens``.

    Args:
        model: one of `VisionMamba` (Vim, VideoMamba), timm's ``VisionTransformer`` and ``Eva`` and those of their
            subclasses that change no forward pass (DeiT, distilled or not, AugReg, DINOv2, SigLIP; EVA-02, DINOv3), or
            another Vision Mamba: a module with ``layers`` (a list that its forward iterates over) of blocks with
            ``mixer`` and ``norm`` that map ``(hidden, residual)`` to the same pair, ``norm_f`` and ``cls_token``, such
            as the upstream repositories' Vim and VideoMamba.
        config: how to merge.
        example: an input of such another model, to find where its class token is; needed only when
            ``patch_embed.img_size`` does not say how large an image it takes.

    Returns:
        The model.

    Raises:
        UserError: a model of another kind, or a compiled one.
        ValueError: settings that do not fit the model, which then stays as it was.

    Example:
        >>> model = rmeeto.apply(timm.create_model("vit_base_patch16_224"), MergeConfig(r=8, metric="K"))
    """
    if hasattr(model, "_orig_mod"):  # torch.compile's
        raise UserError(f"apply: got a compiled {type(model._orig_mod).__name__}; compile or wrap a model after this")
    is_new = not isinstance(model, (*_OURS, _MergingMamba))
    if is_new:
        _patch(model, example)
    try:
        model.merge_config = config
    except ValueError:
        if is_new:
            remove(model)
        raise
    return model


def remove(model: nn.Module) -> nn.Module:
    """Undo `apply`, in place: the dense model, bit for bit.

    Returns:
        The model.

    Raises:
        UserError: a model that does not merge.
    """
    if isinstance(model, tuple(FAMILIES)) and not isinstance(model, MergingTransformer):
        return model  # dense already
    if not isinstance(model, (*_OURS, _MergingMamba)):
        raise UserError(f"remove: {type(model).__name__} does not merge; expected a model that apply() was given")
    model.merge_config = None
    if isinstance(model, Swapped):
        unswap(model)
    return model


def _patch(model: nn.Module, example: Tensor | None) -> None:
    if isinstance(model, tuple(FAMILIES)):
        reason = why_not(model)
        if reason is not None:
            raise UserError(f"apply: {type(model).__name__} cannot merge tokens: {reason}")
        swap(model, MergingTransformer)
        return
    layers = getattr(model, "layers", None)
    if not (
        isinstance(layers, nn.ModuleList)
        and all(hasattr(layer, name) for layer in layers for name in ("mixer", "norm"))
        and all(hasattr(model, name) for name in ("norm_f", "cls_token"))
    ):
        raise UserError(
            f"apply: cannot merge tokens in {type(model).__name__}; expected Vim, VideoMamba, timm's "
            "VisionTransformer or Eva, or a Vision Mamba with layers (of mixer and norm), norm_f and cls_token; "
            "compile or wrap a model after this"
        )
    class_index, num_tokens = _look_at_stem(model, example)
    swap(model, _MergingMamba)
    model.class_index, model.num_input_tokens = class_index, num_tokens


class _MergingMamba:
    """Mixin of a foreign Vision Mamba, whose forward pass finds one layer that merges between the real ones."""

    class_index: int = 0  # where the class token is among the tokens before any merge
    num_input_tokens: int = 0
    _merge_config: MergeConfig | None = None
    _record: list[TokenState] | None = None  # takes the state after each layer, where somebody asks for it

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dense = cls.dense_class
        cls.in_a_pass = type(dense.__name__, (dense,), {"layers": property(lambda model: _AllLayers(model))})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own."""
        return self._in_a_pass().forward(*args, **kwargs)

    def forward_features(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own, where it has one."""
        return self._in_a_pass().forward_features(*args, **kwargs)

    def _in_a_pass(self) -> Any:
        """This model, all that it has included, but for its layers: outside of a pass they are what they were."""
        found = object.__new__(self.in_a_pass)
        found.__dict__ = self.__dict__
        return found

    @property
    def merge_config(self) -> MergeConfig | None:
        """How the model merges; assign a `MergeConfig` or None to re-configure it in place."""
        return self._merge_config

    @merge_config.setter
    def merge_config(self, config: MergeConfig | None) -> None:
        if config is not None:
            self._check(config)
        self._merge_config = config

    def _check(self, config: MergeConfig) -> None:
        name = self.dense_class.__name__
        if not isinstance(config, MergeConfig):
            raise ValueError(f"merge={config!r}; expected a MergeConfig or None")
        if config.metric != "X":
            raise ValueError(
                f"{name}: metric={config.metric!r}, but its mixer hands out no parameters; use metric='X', or load the "
                "weights into image_task.models"
            )
        for option in ("shuffle", "released_flip", "window"):
            if getattr(config, option):
                raise ValueError(f"{name}: {option}={getattr(config, option)!r} needs a model of image_task.models")
        config.check_metrics(name, "its mixer", ("X",))
        check_neighbour(name, config, len(self.layers), self.num_input_tokens)

    @property
    def num_tokens(self) -> list[int]:
        """Number of tokens that each block's mixer sees, the class token counted."""
        return token_counts(self.merge_config, len(self.layers), self.num_input_tokens)

    def states(self, x: Tensor, trace: bool = True) -> list[TokenState]:
        """The state after each layer of a forward pass; where each original token went is always recorded."""
        self._record = record = list[TokenState]()
        try:
            self(x)
        finally:
            self._record = None
        return record


class _AllLayers:
    """What the forward pass of a foreign model iterates over: one layer, which merges between the real ones.

    Behind the last it gives every original token the value of the token that it is part of. So the rest of the forward,
    whatever it reads, sees the full sequence with its class token in place; the norm acts token by token, and a pool
    sees every original token.
    """

    def __init__(self, model: Any) -> None:
        self.layers: nn.ModuleList = model._modules["layers"]
        self.of = vars(model)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Callable]:
        return iter((self.run,))

    def __getitem__(self, index: int | slice) -> nn.Module:
        raise UserError(
            f"layers[{index}]: a forward pass that indexes its layers cannot merge, only one that iterates over "
            "them; remove(model) first"
        )

    def run(self, hidden: Tensor, residual: Tensor | None = None, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All layers: (hidden, residual) -> (hidden, residual), both (B, L, C) before and after."""
        config, record, first = self.of["_merge_config"], self.of.get("_record"), hidden.shape[1]
        state = TokenState(hidden, residual, class_index=self.of["class_index"], target=own_places(hidden))
        for layer, r in zip(self.layers, removals(config, len(self.layers), first), strict=True):
            if r > 0:
                state = plan_merge(state, r, config).carry(state, config.mode, merge_separately)
            hidden, residual = layer(state.hidden, state.residual, *args, **kwargs)
            state = state._replace(hidden=hidden, residual=residual)
            if record is not None:
                record.append(state)
        if state.hidden.shape[1] == first:
            return state.hidden, state.residual
        return unmerge(state.hidden, state.target), unmerge(state.residual, state.target)


class _Seen(Exception):
    """Ends a forward pass whose tokens have been seen."""


@torch.no_grad()
def _look_at_stem(model: nn.Module, example: Tensor | None) -> tuple[int, int]:
    """Position of the class token and number of tokens before the first layer, seen by moving the class token.

    Only what comes before the first layer runs, so any mixer will do, also one that needs a GPU.

    Raises:
        UserError: the tokens could not be seen, or the class token is not at one place.
    """
    name, weight = type(model).__name__, model.cls_token
    if example is None:
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        if size is None:
            raise UserError(f"apply: {name} does not say its input size; give an input as example=x")
        height, width = (size, size) if isinstance(size, int) else size
        channels = getattr(getattr(model.patch_embed, "proj", None), "in_channels", 3)
        example = torch.zeros(1, channels, height, width, device=weight.device, dtype=weight.dtype)
    seen: list[Tensor] = []

    def look(layer: nn.Module, arguments: tuple, keywords: dict) -> None:
        seen.append(arguments[0] if arguments else next(iter(keywords.values())))
        raise _Seen

    hook = next(iter(model.layers)).register_forward_pre_hook(look, with_kwargs=True)
    devices = list(range(torch.cuda.device_count()))
    try:
        for moved in (weight, weight + 1):
            with torch.random.fork_rng(devices), contextlib.suppress(_Seen):
                torch.manual_seed(_STEM_SEED)  # the same dropout both times, and nobody's random numbers used up
                torch.func.functional_call(model, {"cls_token": moved}, (example,))
    finally:
        hook.remove()
    if len(seen) != 2:
        raise UserError(f"apply: {name} does not call its layers on its own input; expected forward(x) to run them")
    changed = (seen[0] != seen[1]).any(-1).any(0).nonzero().flatten().tolist()
    if len(changed) != 1:
        raise UserError(f"apply: {name} has class tokens at {changed}; expected one, at the same place for every input")
    return changed[0], seen[0].shape[1]
