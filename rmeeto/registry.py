"""Models by name, in timm's registry: what the registries of both tasks do."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, get_type_hints

from safetensors import SafetensorError
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig

# What timm.create_model's arguments may say to its factory; the rest is for the model.
_FACTORY = (
    "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir", "features_only", "out_indices",
)  # fmt: skip
# What reading weights raises: safetensors, and torch's of a file that is cut or another kind of file.
_UNREADABLE = (RuntimeError, OSError, EOFError, SafetensorError, UnpicklingError)
_POOL = "token"  # the only global_pool of a model that does not take the argument
# Of `VisionMamba`, what the classes of models say themselves, and what no argument is.
_FIXED = ("patch_embed", "class_index", "average", "options", "return")


def arguments_of(model_class: type[nn.Module]) -> dict[str, Any]:
    """What a class of models takes, by name, and of which type: ``**options`` are those of the class above."""
    found: dict[str, Any] = {}
    for made in model_class.__mro__:
        hints = get_type_hints(made.__init__) if "__init__" in vars(made) else {}
        found = {**found, **hints, **found}
        if hints and "options" not in hints:
            break
    return {name: hint for name, hint in found.items() if name not in _FIXED}


def build(
    model_class: type[nn.Module],
    name: str,
    arguments: dict[str, Any],
    adapt: Callable[..., Any],
    pretrained: bool = False,
    merge: MergeConfig | dict[str, Any] | None = None,
) -> nn.Module:
    """A registered model.

    Args:
        model_class: what to make: takes ``num_classes``, ``img_size``, ``in_chans``, ``merge``; has ``input_size``.
        arguments: its own, and timm's: ``features_only=True`` (with ``out_indices``) gives timm's feature extractor,
            ``pretrained_cfg`` and ``pretrained_cfg_overlay`` say where weights are.
        name: its own.
        adapt: makes pre-trained weights fit the model's size, in place: (state, model, size=height and width they had).
        pretrained: load the weights that its ``pretrained_cfg`` names: a hub model's or a folder's, or timm's.
        merge: a `MergeConfig`, or its ``to_dict()``.

    Returns:
        The model, whose ``pretrained_cfg["input_size"]`` is the shape of its input (a clip's with its frames).

    Raises:
        UserError: an argument that the model or its merge does not take, or pre-trained weights that do not exist or
            cannot be fetched or read or do not fit.
        ValueError: arguments that the model refuses.
    """
    arguments = _known(model_class, name, arguments)

    def adapted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        trained = getattr(model, "pretrained_cfg", None) or {}
        adapt(state, model, size=tuple(trained.get("input_size", ())[-2:]))
        return state

    merge = _merge_config(name, merge) if isinstance(merge, dict) else merge
    try:
        model = build_model_with_cfg(
            model_class,
            name,
            pretrained,
            pretrained_filter_fn=adapted,
            feature_cfg={"out_indices": 3, "feature_cls": "getter"},
            **{**arguments, "merge": merge},
        )
    except _UNREADABLE as error:
        if not pretrained:
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: pre-trained weights could not be loaded: {reason}",
            "fetch the file and load it with the task's models.load_weights(model, path); official weights of image "
            "models: image_task.models.load_official(model, name), or --pretrained auto",
        ) from None
    # timm takes three numbers to make a model from, so a clip's four are put in afterwards.
    inner = model.model if arguments.get("features_only") else model
    model.pretrained_cfg["input_size"] = inner.input_size
    return model


def _known(model_class: type[nn.Module], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments without a pool that is the model's only one.

    Raises:
        UserError: one that neither the model nor timm's factory takes.
    """
    taken = arguments_of(model_class)
    allowed = {*taken, *_FACTORY} - (set() if arguments.get("features_only") else {"out_indices"})
    known = {
        key: value
        for key, value in arguments.items()
        if (key, value) != ("global_pool", _POOL) or "global_pool" in taken
    }
    for key, value in known.items():
        if key not in allowed:
            raise UserError(
                f"{name}: got {key}={value!r}, which it does not take; its arguments are {', '.join(taken)}"
            )
    return known


def _merge_config(name: str, merge: dict[str, Any]) -> MergeConfig:
    """Settings from their plain form.

    Raises:
        UserError: one that does not exist.
    """
    fields = [field.name for field in dataclasses.fields(MergeConfig)]
    for key, value in merge.items():
        if key not in fields:
            raise UserError(f"{name}: merge has {key}={value!r}; expected some of {', '.join(fields)}")
    return MergeConfig(**merge)


@dataclass(frozen=True)
class ReleasedName:
    """What a model's name in the released code stands for, in Python and on the command line.

    Args:
        model: our name.
        dense: it is a teacher, which never merges.
        shuffles: it shuffles the tokens before each merge.
        ordered: whether merged tokens kept their order where the command line said nothing.
        note: how ours differs.
    """

    model: str
    dense: bool = False
    shuffles: bool = False
    ordered: bool = True
    note: str = ""

    @property
    def fixed(self) -> dict[str, Any]:
        """The merge settings that it fixes."""
        return {"shuffle": "random"} if self.shuffles else {}

    @property
    def start(self) -> MergeConfig | None:
        """The merge settings that a command line starts from."""
        return None if self.dense else MergeConfig(keep_order=self.ordered, **self.fixed)

    def merge(self, name: str, merge_para: dict[str, Any] | None, merge: MergeConfig | None) -> MergeConfig | None:
        """How the model of this name merges: as the released ``merge_para`` dict or ``merge`` says.

        Raises:
            UserError: merge settings for a dense teacher, or both forms at once.
            ValueError: a ``merge_para`` that is not understood.
        """
        if merge_para is not None and merge is not None:
            raise UserError(f"{name}: got both merge_para and merge; give one of them")
        if self.dense and (merge_para is not None or merge is not None):
            merging = name.replace("_teacher", "")
            raise UserError(f"{name} is the dense teacher; it takes no merge settings, use {merging}")
        return merge if merge_para is None else MergeConfig.from_released(merge_para, **self.fixed)


def register(
    module: str,
    models: Mapping[str, tuple[type[nn.Module], dict[str, Any]]],
    aliases: Mapping[str, ReleasedName],
    adapt: Callable[..., Any],
) -> None:
    """Give timm's registry an entry for each name: a function of ``module`` that takes what `build` does.

    Those of the released names take ``merge_para``, the released dict, as well; see `ReleasedName.merge`.

    Args:
        module: the caller's ``__name__``; timm reads its ``default_cfgs``.
        models: by name, class and arguments.
        aliases: the released code's names.
        adapt: as for `build`.
    """

    def make(name: str, pretrained: bool = False, merge: Any = None, **kwargs: Any) -> nn.Module:
        model_class, arguments = models[name]
        return build(model_class, name, {**arguments, **kwargs}, adapt, pretrained, merge)

    def make_released(name: str, merge_para: Any = None, merge: Any = None, **kwargs: Any) -> nn.Module:
        released = aliases[name]
        return make(released.model, merge=released.merge(name, merge_para, merge), **kwargs)

    for name in (*models, *aliases):

        def entry(pretrained: bool = False, _name: str = name, **kwargs: Any) -> nn.Module:
            of = make if _name in models else make_released
            return of(_name, pretrained=pretrained, **kwargs)

        entry.__name__ = entry.__qualname__ = name
        entry.__module__ = module
        entry.__doc__ = f"`{name}`, for timm's registry."
        setattr(sys.modules[module], name, register_model(entry))
