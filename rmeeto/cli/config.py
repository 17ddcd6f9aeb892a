"""The settings of a run, of either task: typed sections, their plain form, and the name of the run folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

from rmeeto.engine.distill import DistillConfig
from rmeeto.engine.optim import OptimConfig
from rmeeto.engine.record import RunConfig
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from rmeeto.settings import expect, expect_at_least, expect_one_of, from_plain, setting


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and where its weights and its teacher's come from."""

    model: str = setting("", "its name; an unknown one lists all")
    nb_classes: int | None = setting(None, "classes of the head; none: the data's", "num_classes")
    drop_path: float = setting(0.1, "drop path rate of the last block")
    model_pth: str | None = setting(None, "pre-trained weights (.pth, .pt, .safetensors); none: from scratch")
    weights: str = setting("auto", "of files that hold both: plain, ema, or auto (the plain ones)")
    teacher: str | None = setting(None, "model of the dense teacher; none: the same", "teacher_model")
    teacher_pth: str | None = setting(None, "the teacher's weights; none: --model_pth", "teacher_path")
    delete_head: bool = setting(
        False,
        "leave out the weights' head and train a new one for the data's classes, drawn from the seed; a teacher "
        "needs a trained head for them, from --teacher_pth",
    )

    def __post_init__(self) -> None:
        expect(self, ("drop_path",), lambda rate: 0 <= rate < 1, "a rate in [0, 1)")
        expect(self, ("nb_classes",), lambda classes: classes is None or classes >= 1, "at least 1")
        expect_one_of(self, "weights", "auto", "plain", "ema")
        if self.teacher is not None and self.teacher_pth is None and self.teacher != self.model:
            raise UserError(
                f"--teacher {self.teacher} is another model than --model; give its --teacher_pth."
            )

    @property
    def has_weights(self) -> bool:
        """Whether the student or its teacher is pre-trained."""
        return bool(self.model_pth or self.teacher_pth)


@dataclass(frozen=True)
class DataConfig:
    """How samples are loaded and augmented, images and clips alike; a task adds what they are."""

    num_workers: int = setting(2, "loader processes of each process")
    input_size: int | None = setting(None, "edge of the input in pixels; none: the model's")
    reprob: float = setting(0.25, "share of samples with an erased rectangle")
    remode: str = setting("pixel", "what fills it: pixel, rand, const")
    recount: int = setting(1, "rectangles a sample")
    mixup: float = setting(0.8, "alpha of mixup; 0: none")
    cutmix: float = setting(1.0, "alpha of cutmix; 0: none")
    cutmix_minmax: tuple[float, float] | None = setting(
        None, "smallest and largest edge of cutmix, as shares"
    )
    mixup_prob: float = setting(1.0, "share of batches that are mixed")
    mixup_switch_prob: float = setting(0.5, "share of cutmix where both are on")
    mixup_mode: str = setting("batch", "what is mixed alike: batch, pair, elem")
    smoothing: float = setting(0.1, "label smoothing")
    max_unreadable: float = setting(0.01, "share of unreadable training samples at which training stops")
    max_train_batches: int = setting(0, "micro-batches an epoch; 0: all")
    max_eval_batches: int = setting(0, "batches an evaluation; 0: all")
    pin_mem: bool = setting(True, "page-locked memory for batches that go to a GPU")
    augment: bool = setting(True, "augment the training samples at all")

    def __post_init__(self) -> None:
        shares = ("reprob", "mixup_prob", "mixup_switch_prob", "smoothing", "max_unreadable")
        expect(self, shares, lambda value: 0 <= value <= 1, "a share in [0, 1]")
        expect_at_least(self, 1, "recount")
        expect_at_least(self, 0, "num_workers", "mixup", "cutmix", "max_train_batches", "max_eval_batches")
        expect_one_of(self, "remode", "pixel", "rand", "const")
        expect_one_of(self, "mixup_mode", "batch", "pair", "elem")
        expect(
            self,
            ("cutmix_minmax",),
            lambda two: two is None or (len(two) == 2 and 0 <= two[0] < two[1] <= 1),
            "two shares, the smaller one first, in [0, 1], or none",
        )
        expect(self, ("input_size",), lambda value: value is None or value >= 1, "an edge in pixels")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed, so that targets are soft."""
        return self.augment and (self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None)


@dataclass(frozen=True)
class TaskConfig:
    """All settings of a run; `merge` None is the dense model. A task puts its own sections in their places."""

    model: ModelConfig = ModelConfig()
    merge: MergeConfig | None = None
    data: Any = None
    optim: OptimConfig = OptimConfig()
    distill: DistillConfig = DistillConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        if self.distill.distill and not (self.model.has_weights or self.run.smoke or self.run.eval):
            raise UserError("--distill needs a trained teacher; give --model_pth or --teacher_pth.")

    @classmethod
    def sections(cls) -> dict[str, type]:
        """The class of each section but `merge`, which is no section of flags."""
        hints = get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.name != "merge"}

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them; `from_dict` gives them back."""
        plain = {name: dataclasses.asdict(getattr(self, name)) for name in self.sections()}
        return {"model": plain.pop("model"), "merge": self.merge and self.merge.to_dict(), **plain}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """Settings from their plain form.

        Raises:
            UserError: an unknown section or field, or a value out of range.
        """
        unknown = sorted(set(plain) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UserError(
                f"unknown section {unknown[0]} in the config; expected those of a run's config.json."
            )
        sections = {
            name: from_plain(section, plain.get(name, {}), name) for name, section in cls.sections().items()
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
        "window" + "_".join(map(str, merge.window or ())): merge.window is not None,
        str(merge.matching.name).replace(":", "."): merge.matching.name not in ("exact", "window"),
    }
    return "-".join(
        ["r" + "_".join(f"{n:g}" for n in r), *(name for name, differs in parts.items() if differs)]
    )
