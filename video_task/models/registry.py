"""Every video model by name: timm's registry, and the released code's names in one alias table."""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from rmeeto import registry
from rmeeto.merge import MergeConfig
from rmeeto.registry import ReleasedName
from video_task.models.videomamba import VideoMamba
from video_task.models.weights import adapt_clips

# name -> class, and arguments
MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "videomamba_video_tiny_patch16_224": (VideoMamba, {"embed_dim": 192}),
    "videomamba_video_small_patch16_224": (VideoMamba, {"embed_dim": 384}),
    "videomamba_video_middle_patch16_224": (VideoMamba, {"embed_dim": 576, "depth": 32}),
    # The embedded default: 8 frames of 32 pixels, 8 x 64 patches.
    "videomamba_video_nano_patch4_32": (
        VideoMamba,
        {"embed_dim": 32, "depth": 6, "img_size": 32, "patch_size": 4},
    ),
}

# The released R_MeeTo models kept the order whatever the flags said.
ALIASES = {
    f"videomamba_{merging}{size}": ReleasedName(f"videomamba_video_{size}_patch16_224")
    for size in ("tiny", "small", "middle")
    for merging in ("", "R_MeeTo_")
}


def _default_cfg(name: str) -> dict[str, Any]:
    """What timm's registry knows of a model: a frame of its input, and its parts' names."""
    _, arguments = MODELS[name]
    size = arguments.get("img_size", 224)
    return {
        "input_size": (3, size, size),  # timm takes three numbers; `registry.build` adds the frames
        "fixed_input_size": True,
        "num_classes": 400,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "first_conv": None,  # timm adapts the channels of images' convolutions only
        "classifier": "head",
    }


default_cfgs = {name: _default_cfg(name) for name in MODELS}  # timm's registry reads this name


def build(
    name: str, pretrained: bool = False, merge: MergeConfig | dict[str, Any] | None = None, **kwargs: Any
) -> nn.Module:
    """A model by its name in `MODELS`.

    Args:
        pretrained: load the weights that its ``pretrained_cfg`` names.
        merge: a `MergeConfig`, or its ``to_dict()``.
        kwargs: to `VideoMamba`; ``features_only=True`` (with ``out_indices``) gives timm's feature extractor.

    Raises:
        UserError: an argument that the model does not take, or pre-trained weights that do not exist or cannot be
            fetched or do not fit.
        ValueError: arguments that the model refuses.
    """
    model_class, arguments = MODELS[name]
    return registry.build(model_class, name, {**arguments, **kwargs}, adapt_clips, pretrained, merge)


def build_released(
    alias: str, merge_para: dict[str, Any] | None = None, merge: MergeConfig | None = None, **kwargs: Any
) -> nn.Module:
    """A model by its released name, merged as the released ``merge_para`` dict (or ``merge``) says.

    Raises:
        UserError: both forms at once.
        ValueError: a ``merge_para`` that is not understood.
    """
    released = ALIASES[alias]
    return build(released.model, merge=released.merge(alias, merge_para, merge), **kwargs)


registry.register(__name__, MODELS, build)
registry.register(__name__, ALIASES, build_released)
