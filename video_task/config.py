"""The settings of a video run: typed, validated, and the one source of the command line's flags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rmeeto.cli import config as cli
from rmeeto.engine.flags import setting
from rmeeto.engine.record import RunConfig
from rmeeto.errors import UserError
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
    delete_head: bool = setting(False, "leave out the weights' head")
    use_checkpoint: bool = setting(False, "compute blocks again in the backward pass, to save memory")
    checkpoint_num: int | None = setting(None, "how many blocks, from the first; none: all")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tubelet_size is not None and self.tubelet_size < 1:
            raise UserError(f"--tubelet_size is {self.tubelet_size}; expected at least 1.")
        if self.checkpoint_num is not None and self.checkpoint_num < 0:
            raise UserError(f"--checkpoint_num is {self.checkpoint_num}; expected 0 or more.")
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
class VideoDataConfig:
    """Which clips, and how they are read, sampled and augmented (the defaults are the recipe for K400)."""

    data_set: str = setting(
        "Kinetics_sparse",
        "Kinetics, Kinetics_sparse, UCF101, HMDB51, SSV2 or folder; an unknown one lists all",
    )
    data_path: str = setting(
        "", "folder with train.csv, val.csv, test.csv, the set's own lists, or the videos"
    )
    prefix: str = setting("", "folder that the paths in the lists start from; none: --data_path")
    split: str = setting(" ", "separator between path and class number in the .csv lists")
    fold: int = setting(1, "which of the three official splits of UCF101 and HMDB51")
    num_frames: int = setting(8, "frames of a clip")
    sampling: str | None = setting(
        None, "sparse: from all over the video; dense: a run of it; none: sparse, but dense for Kinetics"
    )
    sampling_rate: int = setting(4, "dense sampling takes every n-th frame")
    num_sample: int = setting(2, "augmentations of each decoded training clip; they multiply the batch")
    batch_size: int = setting(32, "clips per process and micro-batch, in evaluation too")
    num_workers: int = setting(2, "loader processes of each process")
    input_size: int | None = setting(None, "edge of the input in pixels; none: the model's")
    short_side_size: int | None = setting(
        None, "shorter side of the frames that are cropped in evaluation; none: the input's edge"
    )
    test_num_segment: int = setting(4, "views of a video in time")
    test_num_crop: int = setting(3, "views of a video in space")
    decoder: str = setting("pyav", "pyav or torchcodec")
    decode_seconds: float = setting(10.0, "after which a video counts as unreadable")
    max_redraws: int = setting(10, "other clips that are tried for an unreadable training clip")
    max_unreadable: float = setting(0.01, "share of unreadable training clips at which training stops")
    flip: bool | None = setting(
        None, "mirror training clips; none: unless the classes tell left from right, as those of SSV2 do"
    )
    color_jitter: float = setting(0.4, "strength of the colour jitter (where --aa is none)")
    aa: str = setting("rand-m5-n2-mstd0.25-inc1", "RandAugment in timm's notation, or none")
    train_interpolation: str = setting("bicubic", "of the random resized crop: bicubic, bilinear")
    reprob: float = setting(0.25, "share of clips with an erased rectangle")
    remode: str = setting("pixel", "what fills it: pixel, rand, const")
    recount: int = setting(1, "rectangles a clip")
    mixup: float = setting(0.8, "alpha of mixup; 0: none")
    cutmix: float = setting(1.0, "alpha of cutmix; 0: none")
    cutmix_minmax: tuple[float, float] | None = setting(
        None, "smallest and largest edge of cutmix, as shares"
    )
    mixup_prob: float = setting(1.0, "share of batches that are mixed")
    mixup_switch_prob: float = setting(0.5, "share of cutmix where both are on")
    mixup_mode: str = setting("batch", "what is mixed alike: batch, pair, elem")
    smoothing: float = setting(0.1, "label smoothing")
    max_train_batches: int = setting(0, "micro-batches an epoch; 0: all")
    max_eval_batches: int = setting(0, "batches an evaluation; 0: all")
    pin_mem: bool = setting(True, "page-locked memory for batches that go to a GPU")
    augment: bool = setting(True, "augment the training clips at all")

    def __post_init__(self) -> None:
        for name in ("reprob", "mixup_prob", "mixup_switch_prob", "smoothing", "max_unreadable"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected a share in [0, 1].")
        for name in (
            "num_frames",
            "sampling_rate",
            "num_sample",
            "batch_size",
            "test_num_segment",
            "test_num_crop",
            "recount",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected at least 1.")
        for name in (
            "num_workers",
            "max_redraws",
            "color_jitter",
            "mixup",
            "cutmix",
            "max_train_batches",
            "max_eval_batches",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is {getattr(self, name)}; expected 0 or more.")
        for name, known in (
            ("sampling", (None, "sparse", "dense")),
            ("fold", (1, 2, 3)),
            ("train_interpolation", ("bicubic", "bilinear")),
            ("remode", ("pixel", "rand", "const")),
            ("mixup_mode", ("batch", "pair", "elem")),
        ):
            if getattr(self, name) not in known:
                expected = ", ".join("none" if value is None else str(value) for value in known)
                raise UserError(f"--{name} is {getattr(self, name)!r}; expected one of {expected}.")
        for name in ("input_size", "short_side_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected pixels.")
        if not self.decode_seconds > 0:
            raise UserError(f"--decode_seconds is {self.decode_seconds}; expected more than 0.")
        if not self.split:
            raise UserError("--split is empty; give the character between path and class number.")
        if self.mixes and self.batch_size * self.num_sample % 2:
            raise UserError(
                f"--batch_size {self.batch_size} x --num_sample {self.num_sample} is odd, but mixup pairs the clips "
                "of a batch; give an even one, or --mixup 0 --cutmix 0."
            )

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed, so that targets are soft."""
        return self.augment and (self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None)

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
