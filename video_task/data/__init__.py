"""From lists of videos to batches of clips."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from video_task.data.decode import UnreadableVideo, num_frames, read_frames
    from video_task.data.videos import VideoData, build_data

__all__ = ["UnreadableVideo", "VideoData", "build_data", "num_frames", "read_frames"]

# Imported on first use, so that the module of the moving digits writes its first line before torch is imported.
_HOMES = dict.fromkeys(("UnreadableVideo", "num_frames", "read_frames"), "decode")
_HOMES |= dict.fromkeys(("VideoData", "build_data"), "videos")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
