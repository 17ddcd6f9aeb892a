"""Image models; importing this package registers them with timm."""

from image_task.models.deit import Deit
from image_task.models.pretrained import load_official
from image_task.models.registry import ALIASES, MODELS
from image_task.models.videomamba import VideoMamba
from image_task.models.vim import Vim
from rmeeto.hub import export, load
from rmeeto.weights import load_weights

__all__ = [
    "ALIASES",
    "MODELS",
    "Deit",
    "VideoMamba",
    "Vim",
    "export",
    "load",
    "load_official",
    "load_weights",
]
