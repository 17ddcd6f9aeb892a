"""The settings of a run, of either task: typed sections, their plain form, and the name of the run folder."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

from rmeeto.engine.distill import DISTILLED, DistillConfig
from rmeeto.engine.optim import OptimConfig
from rmeeto.engine.record import TRAINED_ON, RunConfig, state_of
from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig
from rmeeto.settings import Need, Settings, from_plain, harmless, refuse, setting, smoked

WEIGHTED = Need(lambda config: config.model.has_weights, "there is no model.model_pth", fatal=True)
AUGMENTED = Need(lambda config: config.data.augment, "data.augment is off")
MIXED = Need(lambda config: config.data.mixes, "neither data.mixup nor data.cutmix is on")
ERASED = Need(lambda config: config.data.augment and config.data.reprob > 0, "data.reprob erases nothing")


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Which model, and where its weights and its teacher's come from."""

    model: str = setting("", "its name; an unknown one lists all")
    nb_classes: int | None = setting(
        None, "classes of the head; none: the data's", "num_classes", within="[1, 1000000]", smoke=None
    )
    drop_path: float = setting(0.1, "drop path rate of the last block", within="[0, 1)", only="training")
    model_pth: str | None = setting(
        None, "pre-trained weights (.pth, .pt, .safetensors); none: from scratch", smoke=None
    )
    weights: str = setting(
        "auto",
        "of files that hold both: plain, ema, or auto (the plain ones; by --pretrained the reported ones)",
        one_of=("auto", "plain", "ema"),
        needs=WEIGHTED,
    )
    teacher: str | None = setting(
        None,
        "model of the dense teacher; none: the same; cache: the same, with its answers on disk (--teacher_cache)",
        "teacher_model",
        only="training",
        needs=DISTILLED,
        smoke=None,
    )
    teacher_pth: str | None = setting(
        None,
        "the teacher's weights; none: --model_pth",
        "teacher_path",
        only="training",
        needs=DISTILLED,
        smoke=None,
    )
    class_names: str | None = setting(
        None,
        "text with a class name a line, in the order of the weights' head, where the weights do not name them (as "
        "official K400 heads, which are in no order): the data's classes are matched by name",
        needs=WEIGHTED,
        smoke=None,
    )
    delete_head: bool = setting(
        False,
        "leave out the weights' head and train a new one for the data's classes, drawn from the seed; a teacher "
        "needs a trained head for them, from --teacher_pth",
        needs=WEIGHTED,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None and self.teacher_pth is None and self.teacher != self.model:
            refuse(self, "teacher", f"teacher_pth=... with it, for it is another model than {self.model}")

    @property
    def has_weights(self) -> bool:
        """Whether the student or its teacher is pre-trained."""
        return bool(self.model_pth or self.teacher_pth)

    @property
    def starts_trained(self) -> bool:
        """Whether the student itself starts from pre-trained weights."""
        return self.model_pth is not None

    @property
    def is_untrained(self) -> bool:
        """Whether the student's head, or all of it, is drawn from the seed."""
        return self.delete_head or not self.starts_trained


@dataclass(frozen=True)
class DataConfig(Settings):
    """How samples are loaded and augmented, images and clips alike; a task adds what they are."""

    num_workers: int = setting(2, "loader processes of each process", within="[0, 1024]", smoke=0, harmless=True)
    input_size: int | None = setting(
        None, "edge of the input in pixels; none: the model's", "img_size", within="[1, 16384]"
    )
    reprob: float = setting(
        0.25, "share of samples with an erased rectangle", within="[0, 1]", only="training", needs=AUGMENTED
    )
    remode: str = setting(
        "pixel",
        "what fills it: pixel, rand, const",
        one_of=("pixel", "rand", "const"),
        only="training",
        needs=ERASED,
    )
    recount: int = setting(1, "rectangles a sample", within="[1, 1000]", only="training", needs=ERASED)
    mixup: float = setting(0.8, "alpha of mixup; 0: none", within="[0, 1000]", only="training", needs=AUGMENTED)
    cutmix: float = setting(1.0, "alpha of cutmix; 0: none", within="[0, 1000]", only="training", needs=AUGMENTED)
    cutmix_minmax: tuple[float, float] | None = setting(
        None,
        "smallest and largest edge of cutmix, as shares",
        within="[0, 1]",
        only="training",
        needs=AUGMENTED,
    )
    mixup_prob: float = setting(1.0, "share of batches that are mixed", within="[0, 1]", only="training", needs=MIXED)
    mixup_switch_prob: float = setting(
        0.5, "share of cutmix where both are on", within="[0, 1]", only="training", needs=MIXED
    )
    mixup_mode: str = setting(
        "batch",
        "what is mixed alike: batch, pair, elem",
        one_of=("batch", "pair", "elem"),
        only="training",
        needs=MIXED,
    )
    smoothing: float = setting(0.1, "label smoothing", within="[0, 1]", only="training")
    max_unreadable: float = setting(
        0.01,
        "share of unreadable training samples at which training stops",
        within="[0, 1]",
        only="training",
        harmless=True,
    )
    max_train_batches: int = setting(0, "micro-batches an epoch; 0: all", within="[0, inf)", only="training", smoke=2)
    max_eval_batches: int = setting(0, "batches an evaluation; 0: all", within="[0, inf)", smoke=2)
    pin_mem: bool = setting(True, "page-locked memory for batches that go to a GPU", harmless=True)
    augment: bool = setting(True, "augment the training samples at all", only="training")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mixup", "cutmix"):
            if 0 < getattr(self, name) < 1e-3:  # the beta distribution of less is not drawn from in floats
                refuse(self, name, "0, or at least 0.001")
        if self.cutmix_minmax is not None and self.cutmix_minmax[0] >= self.cutmix_minmax[1]:
            refuse(self, "cutmix_minmax", "two shares in [0, 1], the smaller one first, or none")

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
            raise UserError("distill.distill needs a trained teacher; give model.model_pth or model.teacher_pth.")

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
        plain = {name: value for name, value in plain.items() if name != TRAINED_ON}
        unknown = sorted(set(plain) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"unknown section {unknown[0]} in the config; expected those of a run's config.json.")
        sections = {name: from_plain(section, plain.get(name, {}), name) for name, section in cls.sections().items()}
        merge = plain.get("merge")
        return cls(merge=None if merge is None else from_plain(MergeConfig, merge, "merge"), **sections)

    def smoke(self) -> Self:
        """The same run for a few batches of embedded data, without weights."""
        run = dataclasses.replace(self.run, smoke=True)
        sections = {name: smoked(getattr(self, name)) for name in self.sections()}
        return dataclasses.replace(self, **{**sections, "run": run})

    @property
    def setting(self) -> str:
        """A short name of how the model merges: dense, r5, r11-prune-metricB, r11-elastic0_5_11, ..."""
        several = not self.run.eval and self.optim.elastic_r
        return setting_name(self.merge) + (f"-elastic{_short(list(several))}" if several else "")

    @property
    def usual_data(self) -> tuple[str, ...]:
        """The data sets that the model is for, which its run folders need not name."""
        return ()

    @property
    def usual_weights(self) -> str | None:
        """The file of the model's official weights, as its authors call it."""
        return None

    @property
    def input_name(self) -> str:
        """The size of the input, where it is another than the model's own."""
        return ""

    @property
    def data_name(self) -> str:
        """What the run folder's name says of the data: a set that the model is not for, an input of one's own."""
        kind = "" if self.data.data_set in self.usual_data else re.sub(r"[^\w.]+", ".", self.data.data_set)
        return "-".join(filter(None, (kind, self.input_name)))

    @property
    def weights_name(self) -> str:
        """What an evaluation's run folder says of the weights: which, where they are not the official ones."""
        path = self.model.model_pth
        return "" if path is None or Path(path).name == self.usual_weights else short_path(path)

    @property
    def folder(self) -> Path:
        """The run folder: `<output_dir>/<name, or model-setting-data>`, of an evaluation also after its weights."""
        evaluated = [self.weights_name, "eval"] if self.run.eval else []
        parts = (self.model.model, self.setting, self.data_name, *evaluated)
        name = self.run.name or "-".join(filter(None, parts))
        return Path(self.run.output_dir) / (name + ("-smoke" if self.run.smoke else ""))

    def state_of_folder(self) -> str:
        """Whether the run folder is "new", to be "continued", or "done"; see `rmeeto.engine.record.state_of`.

        A folder of an earlier version has the settings that it lacks at their defaults.
        """
        defaults = {**type(self)().to_dict(), "merge": MergeConfig().to_dict()}
        return state_of(self.folder, self.to_dict(), self.run.resume, harmless(self.sections()), defaults)


# What a run folder's name says of a setting that differs from the default, in this order.
_NAMES = {
    "prune": "prune",
    "metric": "metric{}",
    "released_flip": "flip",
    "distance": "{}",
    "mode": "{}",
    "neighbour": "neighbour{}",
    "interval": "every{}",
    "odd": "odd",
    "keep_order": "noorder",
    "class_position": "{}",
    "final_tokens": "final{}",
    "shuffle": "{}",
    "shuffle_rate": "shuffle{}",
    "window": "window{}",
    "rule": "{}",
}


def setting_name(merge: MergeConfig | None) -> str:
    """A short name of a merge setting that names what differs from the paper's defaults."""
    if merge is None or not merge.is_active:
        return "dense"
    values, defaults = merge.to_dict(), MergeConfig().to_dict()
    names = _NAMES | {name: f"{name}{{}}" for name in values if name not in _NAMES and name != "r"}
    differs = {name: values[name] for name in names if name in values and values[name] != defaults[name]}
    if merge.window is not None:  # which names its rule
        differs.pop("rule", None)
    if merge.shuffle is not None:  # one part for both of its fields
        differs.pop("shuffle_rate", None)
        differs["shuffle"] = "oddeven" if merge.shuffle == "odd-even" else f"shuffle{merge.shuffle_rate:g}"
    return "-".join(["r" + _short(values["r"]), *(names[name].format(_short(v)) for name, v in differs.items())])


def short_path(weights: str | None) -> str:
    """What tells weights from others: their file's name, or their folder's where that is a usual one."""
    path = Path(weights or "")
    if path.stem in ("best", "model", "pytorch_model"):
        name = path.parent.name
    else:
        name = f"{path.parent.name}-last" if path.stem == "last" else path.stem
    return re.sub(r"[^\w.-]+", ".", name)[:40].strip(".-")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "_".join(map(_short, value))
    return f"{value:g}" if isinstance(value, int | float) else re.sub(r"[^\w.]+", ".", str(value))
