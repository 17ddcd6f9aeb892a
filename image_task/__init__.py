"""The image task: Vim, VideoMamba and DeiT, merged, evaluated and re-trained on images."""
