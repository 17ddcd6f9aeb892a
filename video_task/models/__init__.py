"""Video models; importing this package registers them with timm."""

from rmeeto.hub import export, load
from video_task.models.registry import ALIASES, MODELS
from video_task.models.videomamba import VideoMamba
from video_task.models.weights import load_weights

__all__ = ["ALIASES", "MODELS", "VideoMamba", "export", "load", "load_weights"]
