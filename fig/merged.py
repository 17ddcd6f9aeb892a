"""What trained models merge: a clip of a moving digit, its tokens and its tubes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch

import video_task.models  # noqa: F401
from fig.record import ROOT, save
from rmeeto import MergeConfig
from rmeeto.measure.explain import Answer, clip_sheet
from video_task.config import VideoDataConfig
from video_task.data.digits import DIRECTIONS, EMBEDDED, render
from video_task.data.sampling import sparse_view
from video_task.data.transforms import ViewTransform
from video_task.models import load_weights

WEIGHTS = ROOT / "video_task" / "exp_sh" / "digits" / "retrained.safetensors"
NAME, FRAMES, SIZE = "videomamba_video_nano_patch4_32", 8, 24
DIGIT, DIRECTION = 4, "right"


def vis_exp(path: Path) -> None:
    """The frames that the shipped video model sees of a clip, its tokens in mean colours, its tubes."""
    from sklearn.datasets import load_digits

    classes = [f"{digit} {way}" for digit in EMBEDDED["digits"] for way in sorted(DIRECTIONS)]
    model = timm.create_model(
        NAME,
        img_size=SIZE,
        num_frames=FRAMES,
        tubelet_size=2,
        num_classes=len(classes),
        merge=MergeConfig(r=60),
    )
    load_weights(model.eval(), WEIGHTS)
    scans = load_digits()
    scan = scans.images[scans.target == DIGIT][-3]
    video = np.stack(render(scan, DIRECTION, 16, 64, np.random.default_rng(5)))
    frames = video[sparse_view(FRAMES, len(video))]
    x = ViewTransform(VideoDataConfig(short_side_size=32), SIZE)(frames)
    with torch.inference_mode():
        shares, numbers = model(x)[0].softmax(-1).topk(3)
    top = [(classes[i], float(p)) for i, p in zip(numbers.tolist(), shares)]
    answer = Answer(f"A moving {DIGIT}: eight frames in time, what the model keeps of them", "VideoMamba, r = 60", top)
    edge = 64 * SIZE // 32
    at = (64 - edge) // 2
    pixels = (frames[:, at : at + edge, at : at + edge] / 255).repeat(5, 1).repeat(5, 2)
    save(clip_sheet(model, x, pixels, answer)[0], path, [WEIGHTS])
