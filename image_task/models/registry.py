"""Every image model by name: timm's registry, and the released code's names in one alias table."""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from torch import nn

from image_task.models.deit import Deit
from image_task.models.videomamba import VideoMamba
from image_task.models.vim import Vim
from rmeeto import registry
from rmeeto.registry import ReleasedName
from rmeeto.weights import adapt_pos_embed

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
    # Fashion-MNIST at the 197 tokens of a 224-pixel Vim; the DeiT below is its control of equal size.
    "vim_nano_patch2_28": (Vim, {"embed_dim": 48, "depth": 8, "img_size": 28, "patch_size": 2, "stride": 2,
                                 "num_classes": 10}),
    "videomamba_tiny_patch16_224": (VideoMamba, {"embed_dim": 192}),
    "videomamba_small_patch16_224": (VideoMamba, {"embed_dim": 384}),
    "videomamba_middle_patch16_224": (VideoMamba, {"embed_dim": 576, "depth": 32}),
    "videomamba_base_patch16_224": (VideoMamba, {"embed_dim": 768}),
    # timm's own deit_*_patch16_224 that can merge; a prefix, because timm's registry holds those names.
    "rmeeto_deit_tiny_patch16_224": (Deit, {"embed_dim": 192, "num_heads": 3}),
    "rmeeto_deit_small_patch16_224": (Deit, {"embed_dim": 384, "num_heads": 6}),
    "rmeeto_deit_base_patch16_224": (Deit, {"embed_dim": 768, "num_heads": 12}),
    "rmeeto_deit_nano_patch2_28": (Deit, {"embed_dim": 48, "depth": 8, "num_heads": 3, "img_size": 28, "patch_size": 2,
                                          "num_classes": 10}),
}  # fmt: skip

_VIM, _DEIT, _VIDEO = "vim_{}_patch16_224", "rmeeto_deit_{}_patch16_224", "videomamba_{}_patch16_224"
_SIZES = ("tiny", "small", "base")
ALIASES = {
    **{f"RMeeTo_{size}": ReleasedName(_VIM.format(size), ordered=False) for size in _SIZES},
    **{f"RMeeTo_{size}_teacher": ReleasedName(_VIM.format(size), dense=True) for size in _SIZES},
    **{f"RMeeTo_{size}_shuffle": ReleasedName(_VIM.format(size), ordered=False, shuffles=True) for size in _SIZES},
    **{f"RMeeTo_deit_{size}": ReleasedName(_DEIT.format(size), ordered=False) for size in _SIZES},
    "RMeeTo_deit_small_teacher": ReleasedName(_DEIT.format("small"), dense=True),
    **{f"RMeeTo_video_{size}": ReleasedName(_VIDEO.format(size), ordered=False) for size in _SIZES},
    "RMeeTo_video_middle": ReleasedName(
        _VIDEO.format("middle"),
        ordered=False,
        note="RMeeTo_video_middle is 576 x 32 here, as its teacher and the weights are; the released one was 576 x 24",
    ),
    **{
        f"RMeeTo_video_{size}_teacher": ReleasedName(_VIDEO.format(size), dense=True)
        for size in ("tiny", "small", "middle", "base")
    },
}


def _default_cfg(name: str) -> dict[str, Any]:
    """What timm's registry knows of a model: its input, its parts' names, and where weights are."""
    model_class, arguments = MODELS[name]
    if model_class is Deit and "img_size" not in arguments:
        return get_pretrained_cfg(name.removeprefix("rmeeto_")).to_dict()
    size, digits = arguments.get("img_size", 224), name == "vim_nano_patch2_16"
    return {
        "input_size": (3, size, size),
        "fixed_input_size": True,
        "num_classes": arguments.get("num_classes", 1000),
        "mean": (0.5,) * 3 if digits else IMAGENET_DEFAULT_MEAN,
        "std": (0.5,) * 3 if digits else IMAGENET_DEFAULT_STD,
        "interpolation": "bicubic",
        "crop_pct": 1.0 if size <= 32 else 0.875,  # small images are not cropped
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


default_cfgs = {name: _default_cfg(name) for name in MODELS}  # timm's registry reads this name
registry.register(__name__, MODELS, ALIASES, adapt_pos_embed)
