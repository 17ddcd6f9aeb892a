"""The settings of an image run: typed, validated, and the one source of the command line's flags."""

from __future__ import annotations

from dataclasses import dataclass

from image_task.models.pretrained import OFFICIAL
from image_task.models.registry import default_cfgs
from rmeeto.cli import config as cli
from rmeeto.cli.config import AUGMENTED
from rmeeto.cli.timms import input_size
from rmeeto.engine.optim import OptimConfig
from rmeeto.settings import Need, refuse, setting

SMALL = 32  # up to this edge DeiT crops from a padded image instead of resizing, and evaluates uncropped

STORED = Need(lambda config: not config.data.digits, "the digits are embedded", fatal=True)
TORCHVISION = Need(lambda config: _of_torchvision(config), "it belongs to torchvision's data sets", fatal=True)
SUBSET = Need(lambda config: config.data.data_set == "SUBIMNET", "it belongs to data_set='SUBIMNET'", fatal=True)
INAT = Need(lambda config: config.data.data_set.startswith("INAT"), "it belongs to data_set='INAT'", fatal=True)
SHARDED = Need(
    lambda config: config.data.data_set in ("tar", "wds"),
    "it belongs to data_set='tar' and 'wds'",
    fatal=True,
)
UNREPEATED = Need(
    lambda config: not (config.data.repeated_aug and config.data.augment),
    "data.repeated_aug is on, whose repeats of an image go to several processes",
    fatal=True,
)
UNPOLICED = Need(
    lambda config: config.data.aa in ("", "none"), "data.aa names a policy, which runs on a CPU", fatal=True
)
PHOTOS = Need(lambda config: not config.data.digits, "the digits have an augmentation of their own")
CROPPED = (
    Need(lambda config: not config.data.digits, "the digits are not cropped"),
    Need(lambda config: config.img_size > SMALL, f"images of up to {SMALL} pixels are not cropped"),
)
RESIZED = Need(  # a policy interpolates even where the crop does not
    lambda config: config.img_size > SMALL or config.data.aa not in ("", "none"),
    f"images of up to {SMALL} pixels are cropped from padded ones",
)


@dataclass(frozen=True)
class ModelConfig(cli.ModelConfig):
    """Which model, and where its weights and its teacher's come from."""

    model: str = setting("vim_nano_patch2_16", "its name; an unknown one lists all")
    pretrained: str | None = setting(
        None, "auto: the official weights, from ./weights or the hub", one_of=(None, "auto"), smoke=None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained and self.model_pth:
            refuse(self, "pretrained", f"none beside model_pth={self.model_pth!r}, for both name weights")

    @property
    def has_weights(self) -> bool:
        """Whether the student or its teacher is pre-trained."""
        return super().has_weights or self.pretrained is not None

    @property
    def starts_trained(self) -> bool:
        """Whether the student itself starts from pre-trained weights."""
        return super().starts_trained or self.pretrained is not None


@dataclass(frozen=True)
class DataConfig(cli.DataConfig):
    """Which images, and how they are augmented (the defaults are DeiT's recipe)."""

    data_set: str = setting(
        "digits",
        "digits, IMNET, CIFAR, folder, FASHION, ..., package.module:function; an unknown one lists all",
        smoke="digits",
    )
    data_path: str = setting("", "folder that holds the data set", needs=STORED, smoke="", harmless=True)
    download: bool = setting(
        False,
        "fetch the files of one of torchvision's data sets into data_path, where they are not there",
        needs=TORCHVISION,
        smoke=False,
        harmless=True,
    )
    holdout: int = setting(
        0,
        "training images, the same for every seed, that are left out of the training and evaluated on in place of the "
        "evaluation split, to choose settings by; 0: none",
        within="[0, 1000000000]",
        smoke=0,
    )
    data_ratio: float = setting(
        1.0,
        "share of the training images that SUBIMNET keeps",
        within="(0, 1]",
        only="training",
        needs=SUBSET,
        smoke=1.0,
    )
    batch_size: int = setting(
        128, "images per process and micro-batch, in evaluation too", within="[1, 1000000]", smoke=2
    )
    class_map: str | None = setting(
        None, "file of class names, one a line; none: the data's own classes", needs=STORED, smoke=None
    )
    inat_category: str = setting("name", "what INAT takes for the class: kingdom ... genus, name", needs=INAT)
    color_jitter: float = setting(
        0.3,
        "strength of the colour jitter (where --aa is none)",
        within="[0, 1000]",
        only="training",
        needs=(AUGMENTED, PHOTOS),
    )
    aa: str = setting(
        "rand-m9-mstd0.5-inc1",
        "automatic augmentation policy in timm's notation, or none",
        only="training",
        needs=(AUGMENTED, PHOTOS),
    )
    train_interpolation: str = setting(
        "bicubic",
        "of the random resized crop: bicubic, bilinear, random",
        one_of=("bicubic", "bilinear", "random"),
        only="training",
        needs=(AUGMENTED, PHOTOS, RESIZED),
    )
    decoder: str = setting(
        "pillow",
        "of training JPEGs: pillow, or nvjpeg (torchvision's, which then crops on the GPU too; evaluation stays with "
        "pillow)",
        one_of=("pillow", "nvjpeg"),
        only="training",
        needs=(STORED, AUGMENTED, UNPOLICED),
    )
    draft: str = setting(
        "training",
        "JPEGs that are larger than their crop needs are decoded at a half, a quarter or an eighth of their size: off, "
        "training, or all (evaluation too, whose numbers it changes a little)",
        one_of=("off", "training", "all"),
        needs=STORED,
    )
    local_shards: bool = setting(
        False,
        "each process reads tar files of its own, a few at a time, for storage that is slow at random; else all images "
        "are shuffled",
        only="training",
        needs=(SHARDED, UNREPEATED),
    )
    repeated_aug: bool = setting(
        True,
        "three augmentations of each image, a third of the images an epoch",
        only="training",
        needs=AUGMENTED,
    )
    mean: tuple[float, float, float] | None = setting(
        None, "of the normalised images, by channel; none: ImageNet's (of the digits 0.5)", within="[0, 1]"
    )
    std: tuple[float, float, float] | None = setting(
        None, "their standard deviation; none: ImageNet's (of the digits 0.5)", within="(0, 1]"
    )
    eval_crop_ratio: float = setting(
        0.875, "share of the resized image's edge that evaluation sees", within="(0, 1]", needs=CROPPED
    )

    @property
    def digits(self) -> bool:
        """Whether the images are the embedded ones."""
        return self.data_set == "digits"


@dataclass(frozen=True)
class Config(cli.TaskConfig):
    """All settings of a run; `merge` None is the dense model."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()

    @property
    def img_size(self) -> int:
        """Edge of the model's input in pixels."""
        return self.data.input_size or own_size(self.model.model)

    @property
    def usual_data(self) -> tuple[str, ...]:
        return ("digits", "IMNET") if own_size(self.model.model) > SMALL else ("digits",)

    @property
    def usual_weights(self) -> str | None:
        entry = OFFICIAL.get(self.model.model)
        return entry.file if entry else None

    @property
    def input_name(self) -> str:
        return f"{self.img_size}px" if self.img_size != own_size(self.model.model) else ""


def own_size(name: str) -> int:
    """Edge in pixels of the input that a model is meant for."""
    cfg = default_cfgs.get(name)
    return (cfg["input_size"] if cfg else input_size(name))[-1]


def _of_torchvision(config: Config) -> bool:
    from image_task.torchvision_names import torchvision_name  # which takes a second to import

    return torchvision_name(config.data.data_set) is not None
