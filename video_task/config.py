"""The settings of a video run: typed, validated, and the one source of the command line's flags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rmeeto.cli import config as cli
from rmeeto.engine.record import RunConfig
from rmeeto.errors import UserError
from rmeeto.settings import expect, expect_at_least, expect_one_of, setting
from video_task.optim import VideoOptimConfig


@dataclass(frozen=True)
class VideoModelConfig(cli.ModelConfig):
    """Which model, and where its weights and its teacher's come from."""

    model: str = setting("videomamba_video_nano_patch4_32", "its name; an unknown one lists all")
    model_pth: str | None = setting(
        None, "pre-trained weights of a video or an image model; none: from scratch", "finetune"
    )
    tubelet_size: int | None = setting(None, "frames that a token covers; none: the model's (1)")
    head_map: str | None = setting(
        None, "JSON list: for each class its number in the weights' head, as to take a K710 head for K400"
    )
    use_checkpoint: bool = setting(False, "compute blocks again in the backward pass, to save memory")
    checkpoint_num: int | None = setting(None, "how many blocks, from the first; none: all")

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, ("tubelet_size",), lambda frames: frames is None or frames >= 1, "at least 1")
        expect(self, ("checkpoint_num",), lambda blocks: blocks is None or blocks >= 0, "0 or more")
        if self.delete_head and self.head_map is not None:
            raise UserError(
                f"--delete_head leaves out the head that --head_map {self.head_map} maps; give one."
            )


@dataclass(frozen=True)
class VideoRunConfig(RunConfig):
    """Where a run writes, and what it runs on."""

    smoke: bool = setting(False, "a few batches of small clips made on the spot, without pre-trained weights")
    test_best: bool = setting(False, "test the weights of the best epoch, not those of the last")


@dataclass(frozen=True)
class VideoDataConfig(cli.DataConfig):
    """Which clips, and how they are read, sampled and augmented (the defaults are the recipe for K400)."""

    data_set: str = setting(
        "Kinetics_sparse",
        "Kinetics, Kinetics_sparse, UCF101, HMDB51, SSV2 or folder; an unknown one lists all",
    )
    data_path: str = setting(
        "", "folder with train.csv, val.csv, test.csv, the set's own lists, or the videos"
    )
    prefix: str = setting("", "folder that the paths in the lists start from; none: --data_path")
    split: str = setting(" ", "separator between path and class number in the .csv lists; \\t: a tab")
    fold: int = setting(1, "which of the three official splits of UCF101 and HMDB51")
    num_frames: int = setting(8, "frames of a clip")
    sampling: str | None = setting(
        None, "sparse: from all over the video; dense: a run of it; none: sparse, but dense for Kinetics"
    )
    sampling_rate: int = setting(4, "dense sampling takes every n-th frame")
    num_sample: int = setting(2, "augmentations of each decoded training clip; they multiply the batch")
    batch_size: int = setting(32, "clips per process and micro-batch, in evaluation too")
    short_side_size: int | None = setting(
        None, "shorter side of the frames that are cropped in evaluation; none: the input's edge"
    )
    test_num_segment: int = setting(4, "views of a video in time")
    test_num_crop: int = setting(3, "views of a video in space")
    decoder: str = setting("pyav", "pyav or torchcodec")
    decode_seconds: float = setting(10.0, "after which a video counts as unreadable")
    max_redraws: int = setting(10, "other clips that are tried for an unreadable training clip")
    flip: bool | None = setting(
        None, "mirror training clips; none: unless the classes tell left from right, as those of SSV2 do"
    )
    color_jitter: float = setting(0.4, "strength of the colour jitter (where --aa is none)")
    aa: str = setting("rand-m5-n2-mstd0.25-inc1", "RandAugment in timm's notation, or none")
    train_interpolation: str = setting("bicubic", "of the random resized crop: bicubic, bilinear")

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = (
            "num_frames",
            "sampling_rate",
            "num_sample",
            "batch_size",
            "test_num_segment",
            "test_num_crop",
        )
        expect_at_least(self, 1, *counts)
        expect_at_least(self, 0, "max_redraws", "color_jitter")
        expect_one_of(self, "sampling", None, "sparse", "dense")
        expect_one_of(self, "fold", 1, 2, 3)
        expect_one_of(self, "train_interpolation", "bicubic", "bilinear")
        expect(self, ("short_side_size",), lambda side: side is None or side >= 1, "a side in pixels")
        expect(self, ("decode_seconds",), lambda seconds: seconds > 0, "more than 0")
        if not self.split:
            raise UserError("--split is empty; give the character between path and class number.")
        if self.mixes and self.batch_size * self.num_sample % 2:
            raise UserError(
                f"--batch_size {self.batch_size} x --num_sample {self.num_sample} is odd, but mixup pairs the clips "
                "of a batch; give an even one, or --mixup 0 --cutmix 0."
            )

    @property
    def dense(self) -> bool:
        """Whether a clip is a run of frames, not taken from all over the video."""
        return (self.sampling or ("dense" if self.data_set == "Kinetics" else "sparse")) == "dense"


@dataclass(frozen=True)
class VideoConfig(cli.TaskConfig):
    """All settings of a run; `merge` None is the dense model."""

    model: VideoModelConfig = VideoModelConfig()
    data: VideoDataConfig = VideoDataConfig()
    optim: VideoOptimConfig = VideoOptimConfig()
    run: VideoRunConfig = VideoRunConfig()


def smoke(config: VideoConfig) -> VideoConfig:
    """The same run for a few batches: clips made on the spot, two a batch, one epoch, no weights, one video to test."""
    data = dataclasses.replace(
        config.data,
        data_set="folder",
        data_path="",
        prefix="",
        batch_size=2,
        num_workers=0,
        max_train_batches=2,
        max_eval_batches=1,
    )
    model = dataclasses.replace(
        config.model, nb_classes=None, model_pth=None, head_map=None, teacher=None, teacher_pth=None
    )
    return dataclasses.replace(
        config,
        model=model,
        data=data,
        optim=dataclasses.replace(config.optim, epochs=1, warmup_epochs=0),
        run=dataclasses.replace(config.run, smoke=True),
    )
