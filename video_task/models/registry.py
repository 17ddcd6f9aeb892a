"""Every video model by name: timm's registry, and the released code's names in one alias table."""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from rmeeto import registry
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

# The authors' files for Kinetics-400 and 8 frames, as the recipes call them.
OFFICIAL = {
    f"videomamba_video_{size}_patch16_224": f"videomamba_{size[0]}16_k400_f8_res224.pth"
    for size in ("tiny", "small", "middle")
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
registry.register(__name__, MODELS, ALIASES, adapt_clips)
