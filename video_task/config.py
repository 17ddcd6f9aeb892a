"""The settings of a video run: typed, validated, and the one source of the command line's flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from rmeeto.cli import config as cli
from rmeeto.cli.config import AUGMENTED, WEIGHTED
from rmeeto.engine.record import RunConfig
from rmeeto.errors import UserError
from rmeeto.settings import Need, refuse, setting
from rmeeto.trained_on import TrainedOn
from video_task.models.registry import OFFICIAL, default_cfgs
from video_task.optim import VideoOptimConfig

OWN_FRAMES = 8  # of a clip, that the models are made for

CHECKPOINTED = Need(lambda config: config.model.use_checkpoint, "model.use_checkpoint is off")
DENSE = Need(lambda config: config.data.dense, "sparse sampling has no rate")
SPLIT = Need(
    lambda config: config.data.data_set in ("UCF101", "HMDB51"),
    "it belongs to data_set='UCF101' and HMDB51",
    fatal=True,
)
LISTED = Need(lambda config: config.data.data_set != "folder", "data_set='folder' has no lists")


@dataclass(frozen=True)
class VideoModelConfig(cli.ModelConfig):
    """Which model, and where its weights and its teacher's come from."""

    model: str = setting("videomamba_video_nano_patch4_32", "its name; an unknown one lists all")
    model_pth: str | None = setting(
        None,
        "pre-trained weights of a video or an image model; none: from scratch",
        "finetune",
        smoke=None,
    )
    tubelet_size: int | None = setting(None, "frames that a token covers; none: the model's (1)", within="[1, 10000]")
    head_map: str | None = setting(
        None,
        "JSON list: for each class its number in the weights' head, as to take a K710 head for K400",
        needs=WEIGHTED,
        smoke=None,
    )
    use_checkpoint: bool = setting(False, "compute blocks again in the backward pass, to save memory", only="training")
    checkpoint_num: int | None = setting(
        None,
        "how many blocks, from the first; none: all",
        within="[0, inf)",
        only="training",
        needs=CHECKPOINTED,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delete_head and self.head_map is not None:
            refuse(self, "head_map", "none with delete_head=True, which leaves out the head that it maps")


@dataclass(frozen=True)
class VideoRunConfig(RunConfig):
    """Where a run writes, and what it runs on."""

    smoke: bool = setting(False, "a few batches of small clips made on the spot, without pre-trained weights")
    test_best: bool = setting(False, "test the weights of the best epoch, not those of the last", only="training")


@dataclass(frozen=True)
class VideoDataConfig(cli.DataConfig):
    """Which clips, and how they are read, sampled and augmented (the defaults are the recipe for K400)."""

    data_set: str = setting(
        "Kinetics_sparse",
        "Kinetics, Kinetics_sparse, UCF101, HMDB51, SSV2 or folder; an unknown one lists all",
        smoke="folder",
    )
    data_path: str = setting(
        "",
        "folder with train.csv, val.csv, test.csv, the set's own lists, or the videos",
        smoke="",
        harmless=True,
    )
    prefix: str = setting(
        "", "folder that the paths in the lists start from; none: --data_path", needs=LISTED, smoke=""
    )
    split: str = setting(" ", "separator between path and class number in the .csv lists; \\t: a tab", needs=LISTED)
    fold: int = setting(1, "which of the three official splits of UCF101 and HMDB51", one_of=(1, 2, 3), needs=SPLIT)
    num_frames: int = setting(OWN_FRAMES, "frames of a clip", within="[1, 10000]")
    sampling: str | None = setting(
        None,
        "sparse: from all over the video; dense: a run of it; none: sparse, but dense for Kinetics",
        one_of=(None, "sparse", "dense"),
    )
    sampling_rate: int = setting(4, "dense sampling takes every n-th frame", within="[1, 10000]", needs=DENSE)
    num_sample: int = setting(
        2,
        "augmentations of each decoded training clip; they multiply the batch",
        within="[1, 1000]",
        only="training",
    )
    batch_size: int = setting(
        32, "clips per process and micro-batch, in evaluation too", within="[1, 1000000]", smoke=2
    )
    short_side_size: int | None = setting(
        None,
        "shorter side of the frames that are cropped in evaluation; none: the input's edge",
        within="[1, 16384]",
    )
    test_num_segment: int = setting(4, "views of a video in time", within="[1, 1000]")
    test_num_crop: int = setting(3, "views of a video in space", within="[1, 1000]")
    max_eval_batches: int = setting(0, "batches an evaluation; 0: all", within="[0, inf)", smoke=1)
    decoder: str = setting("pyav", "pyav or torchcodec")
    decode_seconds: float = setting(10.0, "after which a video counts as unreadable", within="(0, 1000000]")
    max_redraws: int = setting(
        10,
        "other clips that are tried for an unreadable training clip",
        within="[0, 1000000]",
        only="training",
    )
    flip: bool | None = setting(
        None,
        "mirror training clips; none: unless the classes tell left from right, as those of SSV2 do",
        only="training",
        needs=AUGMENTED,
    )
    color_jitter: float = setting(
        0.4,
        "strength of the colour jitter (where --aa is none)",
        within="[0, 1000]",
        only="training",
        needs=AUGMENTED,
    )
    aa: str = setting(
        "rand-m5-n2-mstd0.25-inc1",
        "RandAugment in timm's notation, or none",
        only="training",
        needs=AUGMENTED,
    )
    train_interpolation: str = setting(
        "bicubic",
        "of the random resized crop: bicubic, bilinear",
        one_of=("bicubic", "bilinear"),
        only="training",
        needs=AUGMENTED,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.split:
            refuse(self, "split", "the character between path and class number")
        if self.mixes and self.batch_size * self.num_sample % 2:
            raise UserError(
                f"VideoDataConfig: batch_size={self.batch_size} x num_sample={self.num_sample} is odd, but mixup pairs "
                "the clips of a batch; give an even one, or mixup=0 and cutmix=0."
            )

    @property
    def dense(self) -> bool:
        """Whether a clip is a run of frames, not taken from all over the video."""
        return (self.sampling or ("dense" if self.data_set == "Kinetics" else "sparse")) == "dense"

    @property
    def stride(self) -> int | None:
        """From one frame of a run to the next; None where a clip is from all over the video."""
        return self.sampling_rate if self.dense else None

    def trained_on(self, size: Sequence[int], class_names: Sequence[str]) -> TrainedOn:
        """What weights that are trained on these clips, 3 x T x H x W of these classes, are for."""
        return TrainedOn(
            tuple(size), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, size[-1] / (self.short_side_size or size[-1]),
            "bilinear", tuple(class_names), self.data_set,
        )  # fmt: skip


@dataclass(frozen=True)
class VideoConfig(cli.TaskConfig):
    """All settings of a run; `merge` None is the dense model."""

    model: VideoModelConfig = VideoModelConfig()
    data: VideoDataConfig = VideoDataConfig()
    optim: VideoOptimConfig = VideoOptimConfig()
    run: VideoRunConfig = VideoRunConfig()

    @property
    def usual_data(self) -> tuple[str, ...]:
        return ("folder",) if self.run.smoke else ("Kinetics", "Kinetics_sparse")

    @property
    def usual_weights(self) -> str | None:
        return OFFICIAL.get(self.model.model)

    @property
    def input_name(self) -> str:
        own, data = default_cfgs.get(self.model.model), self.data
        frames = f"{data.num_frames}f" if data.num_frames != OWN_FRAMES else ""
        other = own is not None and data.input_size not in (None, own["input_size"][-1])
        return "-".join(filter(None, (frames, f"{data.input_size}px" if other else "")))
