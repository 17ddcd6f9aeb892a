"""The settings of an image run: typed, validated, and the one source of the command line's flags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rmeeto.cli import config as cli
from rmeeto.engine.flags import setting
from rmeeto.errors import UserError


@dataclass(frozen=True)
class ModelConfig(cli.ModelConfig):
    """Which model, and where its weights and its teacher's come from."""

    model: str = setting("vim_nano_patch2_16", "its name; an unknown one lists all")
    pretrained: str | None = setting(None, "auto: the official weights, from ./weights or the hub")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained not in (None, "auto"):
            raise UserError(f"--pretrained is {self.pretrained!r}; expected auto (a file is --model_pth's).")
        if self.pretrained and self.model_pth:
            raise UserError(
                f"--pretrained and --model_pth {self.model_pth} both name weights; give one of them."
            )

    @property
    def has_weights(self) -> bool:
        """Whether the student or its teacher is pre-trained."""
        return super().has_weights or self.pretrained is not None


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are augmented (the defaults are DeiT's recipe)."""

    data_set: str = setting("digits", "digits, IMNET, SUBIMNET, CIFAR, INAT, ...; an unknown one lists all")
    data_path: str = setting("", "folder that holds the data set")
    data_ratio: float = setting(1.0, "share of the training images that SUBIMNET keeps")
    batch_size: int = setting(128, "images per process and micro-batch, in evaluation too")
    num_workers: int = setting(2, "loader processes of each process")
    input_size: int | None = setting(None, "edge of the input in pixels; none: the model's")
    inat_category: str = setting("name", "what INAT takes for the class: kingdom ... genus, name")
    color_jitter: float = setting(0.3, "strength of the colour jitter (where --aa is none)")
    aa: str = setting("rand-m9-mstd0.5-inc1", "automatic augmentation policy in timm's notation, or none")
    train_interpolation: str = setting("bicubic", "of the random resized crop: bicubic, bilinear, random")
    reprob: float = setting(0.25, "share of images with an erased rectangle")
    remode: str = setting("pixel", "what fills it: pixel, rand, const")
    recount: int = setting(1, "rectangles an image")
    mixup: float = setting(0.8, "alpha of mixup; 0: none")
    cutmix: float = setting(1.0, "alpha of cutmix; 0: none")
    cutmix_minmax: tuple[float, float] | None = setting(
        None, "smallest and largest edge of cutmix, as shares"
    )
    mixup_prob: float = setting(1.0, "share of batches that are mixed")
    mixup_switch_prob: float = setting(0.5, "share of cutmix where both are on")
    mixup_mode: str = setting("batch", "what is mixed alike: batch, pair, elem")
    smoothing: float = setting(0.1, "label smoothing")
    repeated_aug: bool = setting(True, "three augmentations of each image, a third of the images an epoch")
    eval_crop_ratio: float = setting(0.875, "share of the resized image's edge that evaluation sees")
    max_unreadable: float = setting(0.01, "share of unreadable training images at which training stops")
    max_train_batches: int = setting(0, "micro-batches an epoch; 0: all")
    max_eval_batches: int = setting(0, "batches an evaluation; 0: all")
    pin_mem: bool = setting(True, "page-locked memory for batches that go to a GPU")
    augment: bool = setting(True, "augment the training images at all")

    def __post_init__(self) -> None:
        for name in ("reprob", "mixup_prob", "mixup_switch_prob", "smoothing", "max_unreadable"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected a share in [0, 1].")
        for name in ("data_ratio", "eval_crop_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected a share in (0, 1].")
        for name in ("batch_size", "recount"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; expected at least 1.")
        for name in (
            "num_workers",
            "mixup",
            "cutmix",
            "color_jitter",
            "max_train_batches",
            "max_eval_batches",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is {getattr(self, name)}; expected 0 or more.")
        for name, known in (
            ("train_interpolation", ("bicubic", "bilinear", "random")),
            ("remode", ("pixel", "rand", "const")),
            ("mixup_mode", ("batch", "pair", "elem")),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}.")
        if self.input_size is not None and self.input_size < 1:
            raise UserError(f"--input_size is {self.input_size}; expected an edge in pixels.")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed, so that targets are soft."""
        return self.augment and (self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None)


@dataclass(frozen=True)
class Config(cli.TaskConfig):
    """All settings of a run; `merge` None is the dense model."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()


def smoke(config: Config) -> Config:
    """The same run for a few batches: embedded digits, two images a batch, one epoch, no weights."""
    data = dataclasses.replace(
        config.data,
        data_set="digits",
        data_path="",
        data_ratio=1.0,
        batch_size=2,
        num_workers=0,
        max_train_batches=2,
        max_eval_batches=2,
    )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model, nb_classes=None, model_pth=None, pretrained=None, teacher=None, teacher_pth=None
        ),
        data=data,
        optim=dataclasses.replace(config.optim, epochs=1, warmup_epochs=0),
        run=dataclasses.replace(config.run, smoke=True),
    )
