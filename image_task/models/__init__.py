"""Image models; importing this package registers them with timm."""

from image_task.models.deit import Deit
from image_task.models.registry import ALIASES, MODELS
from image_task.models.videomamba import VideoMamba
from image_task.models.vim import Vim
from image_task.models.weights import load_weights
from rmeeto.hub import export, load

__all__ = ["ALIASES", "MODELS", "Deit", "VideoMamba", "Vim", "export", "load", "load_weights"]
