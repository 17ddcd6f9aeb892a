"""The settings of an image run: typed, validated, and the one source of the command line's flags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rmeeto.cli import config as cli
from rmeeto.errors import UserError
from rmeeto.settings import expect, expect_at_least, expect_one_of, setting


@dataclass(frozen=True)
class ModelConfig(cli.ModelConfig):
    """Which model, and where its weights and its teacher's come from."""

    model: str = setting("vim_nano_patch2_16", "its name; an unknown one lists all")
    pretrained: str | None = setting(None, "auto: the official weights, from ./weights or the hub")

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, ("pretrained",), lambda name: name in (None, "auto"), "auto (a file is --model_pth's)")
        if self.pretrained and self.model_pth:
            raise UserError(
                f"--pretrained and --model_pth {self.model_pth} both name weights; give one of them."
            )

    @property
    def has_weights(self) -> bool:
        """Whether the student or its teacher is pre-trained."""
        return super().has_weights or self.pretrained is not None


@dataclass(frozen=True)
class DataConfig(cli.DataConfig):
    """Which images, and how they are augmented (the defaults are DeiT's recipe)."""

    data_set: str = setting("digits", "digits, IMNET, SUBIMNET, CIFAR, INAT, ...; an unknown one lists all")
    data_path: str = setting("", "folder that holds the data set")
    data_ratio: float = setting(1.0, "share of the training images that SUBIMNET keeps")
    batch_size: int = setting(128, "images per process and micro-batch, in evaluation too")
    inat_category: str = setting("name", "what INAT takes for the class: kingdom ... genus, name")
    color_jitter: float = setting(0.3, "strength of the colour jitter (where --aa is none)")
    aa: str = setting("rand-m9-mstd0.5-inc1", "automatic augmentation policy in timm's notation, or none")
    train_interpolation: str = setting("bicubic", "of the random resized crop: bicubic, bilinear, random")
    repeated_aug: bool = setting(True, "three augmentations of each image, a third of the images an epoch")
    eval_crop_ratio: float = setting(0.875, "share of the resized image's edge that evaluation sees")

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, ("data_ratio", "eval_crop_ratio"), lambda share: 0 < share <= 1, "a share in (0, 1]")
        expect_at_least(self, 1, "batch_size")
        expect_at_least(self, 0, "color_jitter")
        expect_one_of(self, "train_interpolation", "bicubic", "bilinear", "random")


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
