"""The settings of a video run: typed, validated, and the one source of the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass

from rmeeto.engine.flags import setting
from rmeeto.errors import UserError


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
