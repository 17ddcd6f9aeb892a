"""The settings of an image run: typed, validated, and the one source of the command line's flags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmeeto.engine.distill import DistillConfig
from rmeeto.engine.flags import from_plain, setting
from rmeeto.engine.optim import OptimConfig
from rmeeto.engine.record import RunConfig
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and where its weights and its teacher's come from."""

    model: str = setting("vim_nano_patch2_16", "its name; an unknown one lists all")
    nb_classes: int | None = setting(None, "classes of the head; none: the data's", "num_classes")
    drop_path: float = setting(0.1, "drop path rate of the last block")
    model_pth: str | None = setting(None, "pre-trained weights (.pth, .pt, .safetensors); none: from scratch")
    teacher: str | None = setting(None, "model of the dense teacher; none: the same", "teacher_model")
    teacher_pth: str | None = setting(None, "the teacher's weights; none: --model_pth", "teacher_path")

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise UserError(f"--drop_path is {self.drop_path}; expected a rate in [0, 1).")
        if self.nb_classes is not None and self.nb_classes < 1:
            raise UserError(f"--nb_classes is {self.nb_classes}; expected at least 1.")
        if self.teacher is not None and self.teacher_pth is None and self.teacher != self.model:
            raise UserError(
                f"--teacher {self.teacher} is another model than --model; give its --teacher_pth."
            )


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
class Config:
    """All settings of a run; `merge` None is the dense model."""

    model: ModelConfig = ModelConfig()
    merge: MergeConfig | None = None
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    distill: DistillConfig = DistillConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        has_weights = self.model.model_pth or self.model.teacher_pth
        if self.distill.distill and not (has_weights or self.run.smoke or self.run.eval):
            raise UserError("--distill needs a trained teacher; give --model_pth or --teacher_pth.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them; `from_dict` gives them back."""
        plain = {field.name: dataclasses.asdict(getattr(self, field.name)) for field in _SECTIONS}
        return {"model": plain.pop("model"), "merge": self.merge and self.merge.to_dict(), **plain}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Config:
        """Settings from their plain form.

        Raises:
            UserError: an unknown section or field, or a value out of range.
        """
        unknown = sorted(set(plain) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UserError(
                f"unknown section {unknown[0]} in the config; expected those of a run's config.json."
            )
        types = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig, "distill": DistillConfig}
        sections = {
            name: from_plain(section, plain.get(name, {}), name)
            for name, section in {**types, "run": RunConfig}.items()
        }
        merge = plain.get("merge")
        return cls(merge=None if merge is None else from_plain(MergeConfig, merge, "merge"), **sections)

    @property
    def setting(self) -> str:
        """A short name of how the model merges: dense, r5, r11-prune-metricB, ..."""
        return setting_name(self.merge)

    @property
    def folder(self) -> Path:
        """The run folder: `<output_dir>/<name, or model-setting>`."""
        name = self.run.name or f"{self.model.model}-{self.setting}{'-eval' if self.run.eval else ''}"
        return Path(self.run.output_dir) / (name + ("-smoke" if self.run.smoke else ""))


_SECTIONS = [field for field in dataclasses.fields(Config) if field.name != "merge"]


def setting_name(merge: MergeConfig | None) -> str:
    """A short name of a merge setting that names what differs from the paper's defaults."""
    if merge is None or not merge.is_active:
        return "dense"
    r = merge.r if isinstance(merge.r, tuple) else (merge.r,)
    parts = {
        "prune": merge.prune,
        f"metric{merge.metric}": merge.metric != "X",
        "flip": merge.released_flip,
        merge.distance: merge.distance != "cosine",
        merge.mode: merge.mode != "sum",
        f"neighbour{merge.neighbour}": merge.neighbour != 1,
        f"every{merge.interval}": merge.interval != 2,
        "odd": merge.odd,
        "noorder": not merge.keep_order,
        merge.class_position: merge.class_position != "proportional",
        f"final{merge.final_tokens}": merge.final_tokens is not None,
        f"shuffle{merge.shuffle_rate:g}": merge.shuffle == "random",
        "oddeven": merge.shuffle == "odd-even",
    }
    return "-".join(
        ["r" + "_".join(f"{n:g}" for n in r), *(name for name, differs in parts.items() if differs)]
    )


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
            config.model, nb_classes=None, model_pth=None, teacher=None, teacher_pth=None
        ),
        data=data,
        optim=dataclasses.replace(config.optim, epochs=1, warmup_epochs=0),
        run=dataclasses.replace(config.run, smoke=True),
    )
