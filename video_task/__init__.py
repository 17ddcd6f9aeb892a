"""The video task: VideoMamba on Kinetics-400, merged and re-trained. It cannot be run yet.

It will be the mirror image of `image_task`: `main.py` and `throughput.py`, the decoding and sampling of clips, the
video form of VideoMamba, and the recipes of tables 13 and 14.
"""
