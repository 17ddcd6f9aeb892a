"""Every image model by name: timm's registry, and the released code's names in one alias table."""

from __future__ import annotations

import sys
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model
from torch import nn

from image_task.models.vim import Vim
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig

# name -> (class, arguments)
MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "vim_tiny_patch16_224": (Vim, {"embed_dim": 192}),
    "vim_small_patch16_224": (Vim, {"embed_dim": 384}),
    "vim_base_patch16_224": (Vim, {"embed_dim": 768}),
    "vim_tiny_patch16_stride8_224": (Vim, {"embed_dim": 192, "stride": 8}),
    "vim_small_patch16_stride8_224": (Vim, {"embed_dim": 384, "stride": 8}),
    "vim_base_patch16_stride8_224": (Vim, {"embed_dim": 768, "stride": 8}),
    # The embedded default: 16-pixel digits, 64 patches.
    "vim_nano_patch2_16": (Vim, {"embed_dim": 32, "depth": 6, "img_size": 16, "patch_size": 2, "stride": 2,
                                 "num_classes": 10}),
}  # fmt: skip

# released name -> (our name, what it fixes): "merged" takes merge_para, "shuffle" shuffles first, "dense" never merges
ALIASES: dict[str, tuple[str, str]] = {
    f"RMeeTo_{size}{suffix}": (f"vim_{size}_patch16_224", kind)
    for size in ("tiny", "small", "base")
    for suffix, kind in (("", "merged"), ("_teacher", "dense"), ("_shuffle", "shuffle"))
}

_TIMM_ARGUMENTS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def build(name: str, **kwargs: Any) -> nn.Module:
    """A model by its name in `MODELS`; keyword arguments go to its class.

    Raises:
        UserError: pre-trained weights asked for.
    """
    model_class, arguments = MODELS[name]
    if kwargs.pop("pretrained", False):
        raise UserError(f"{name}: pretrained=True is not supported; load a file with image_task.models.load_weights")
    for key in _TIMM_ARGUMENTS:
        kwargs.pop(key, None)
    arguments = {**arguments, **kwargs}
    model = model_class(**arguments)
    size = arguments.get("img_size", 224)
    digits = name == "vim_nano_patch2_16"
    model.pretrained_cfg = model.default_cfg = {
        "architecture": name,
        "input_size": (3, size, size) if isinstance(size, int) else (3, *size),
        "num_classes": model.num_classes,
        "mean": (0.5,) * 3 if digits else IMAGENET_DEFAULT_MEAN,
        "std": (0.5,) * 3 if digits else IMAGENET_DEFAULT_STD,
        "interpolation": "bicubic",
        "crop_pct": 1.0 if digits else 0.875,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return model


def build_released(
    alias: str, merge_para: dict[str, Any] | None = None, merge: MergeConfig | None = None, **kwargs: Any
) -> nn.Module:
    """A model by its released name, merged as the released ``merge_para`` dict (or ``merge``) says.

    Raises:
        UserError: merge settings for a dense teacher, or both forms at once.
        ValueError: a ``merge_para`` that is not understood.
    """
    name, kind = ALIASES[alias]
    if merge_para is not None and merge is not None:
        raise UserError(f"{alias}: got both merge_para and merge; give one of them")
    if kind == "dense" and (merge_para is not None or merge is not None):
        raise UserError(f"{alias} is the dense teacher; it takes no merge settings, use {alias.replace('_teacher', '')}")
    if merge_para is not None:
        fixed = {"shuffle": "random"} if kind == "shuffle" else {}
        merge = MergeConfig.from_released(merge_para, **fixed)
    return build(name, merge=merge, **kwargs)


def _register() -> None:
    module = sys.modules[__name__]
    for name in [*MODELS, *ALIASES]:
        maker = build if name in MODELS else build_released

        def entry(pretrained: bool = False, _name: str = name, _maker=maker, **kwargs: Any) -> nn.Module:
            return _maker(_name, pretrained=pretrained, **kwargs)

        entry.__name__ = entry.__qualname__ = name
        entry.__doc__ = f"`{name}`, for timm's registry."
        setattr(module, name, register_model(entry))


_register()
