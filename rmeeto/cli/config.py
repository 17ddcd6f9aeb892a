"""The settings of a run, of either task: typed sections, their plain form, and the name of the run folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

from rmeeto.engine.distill import DistillConfig
from rmeeto.engine.flags import from_plain, setting
from rmeeto.engine.optim import OptimConfig
from rmeeto.engine.record import RunConfig
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig


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

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise UserError(f"--drop_path is {self.drop_path}; expected a rate in [0, 1).")
        if self.nb_classes is not None and self.nb_classes < 1:
            raise UserError(f"--nb_classes is {self.nb_classes}; expected at least 1.")
        if self.weights not in ("auto", "plain", "ema"):
            raise UserError(f"--weights is {self.weights!r}; expected auto, plain or ema.")
        if self.teacher is not None and self.teacher_pth is None and self.teacher != self.model:
            raise UserError(
                f"--teacher {self.teacher} is another model than --model; give its --teacher_pth."
            )

    @property
    def has_weights(self) -> bool:
        """Whether the student or its teacher is pre-trained."""
        return bool(self.model_pth or self.teacher_pth)


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
    }
    return "-".join(
        ["r" + "_".join(f"{n:g}" for n in r), *(name for name, differs in parts.items() if differs)]
    )
