"""From lists of videos to batches of clips."""

from video_task.data.decode import UnreadableVideo, num_frames, read_frames
from video_task.data.videos import VideoData, build_data

__all__ = ["UnreadableVideo", "VideoData", "build_data", "num_frames", "read_frames"]
