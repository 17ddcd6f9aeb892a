"""The model that a command uses on files: of a run, a model folder, a hub repository, or a name with weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import nn

from rmeeto import hub
from rmeeto.cli.config import setting_name
from rmeeto.cli.task import Task
from rmeeto.data.classes import read_names
from rmeeto.engine.dist import start
from rmeeto.errors import UserError
from rmeeto.json_file import read_json
from rmeeto.patch import apply
from rmeeto.trained_on import WEIGHTS, trained_on, weights_in
from rmeeto.weights import head_rows

_IMAGENET = 1000
PREPARED = {"mean": "mean", "std": "std", "eval_crop_ratio": "crop_pct"}  # settings that a model's description has


@dataclass(frozen=True)
class Chosen:
    """A model to use.

    Attributes:
        model: in evaluation mode, on `device`.
        config: the settings that it is used with.
        of_run: whether they are those of the run that trained it.
        name: of the model, and how it merges.
        weights: where they come from; None: drawn from a seed.
        labels: the name of each class, and in a few words where they are from.
        said: names of the flags that chose it.
    """

    model: nn.Module
    config: Any
    of_run: bool
    name: str
    weights: str | None
    labels: list[str]
    labels_from: str
    device: torch.device
    said: frozenset[str]

    @property
    def is_folder(self) -> bool:
        """Whether it is a model folder or repository, which describes itself."""
        return self.weights is not None and _is_folder(self.weights)

    def top(self, probabilities: torch.Tensor, count: int = 5) -> list[tuple[int, str, float]]:
        """The most probable classes of (K,): number, name, probability."""
        values, indices = probabilities.topk(min(count, len(probabilities)))
        return [(int(i), self.labels[int(i)], float(v)) for v, i in zip(values, indices)]


def choose(task: Task, argv: Sequence[str], class_names: str | None = None) -> tuple[Chosen, list[str]]:
    """The model that flags of a task's command line name, ready to use.

    ``--model_pth`` may be a run folder or a file in one, whose settings then count; a model folder (see `rmeeto.hub`)
    or ``hf_hub:owner/name``; or weights of ``--model``.

    Args:
        task: images' or clips'.
        argv: flags of the task's command line.
        class_names: a file with a class in each line, in the order of the head.

    Returns:
        The model, and lines about flags without effect.

    Raises:
        UserError: a flag, file or folder that cannot be used.
    """
    given = _value(argv, "--model_pth")
    if given is not None and _is_folder(given):
        config, model, notices = _of_folder(task, given, argv)
        of_run, weights = False, given
    else:
        run, file = _run_of(given, argv)
        flags = _in_run(task, run, file, argv) if run else list(argv)
        config, _, notices = task.command.parse([*flags, "--eval"])
        notices = [note for note in notices if not note.startswith("--eval")]
        if run is None and not {"--model", "--config"} & {token.partition("=")[0] for token in argv}:
            raise UserError("no model is named; give --model_pth (a run or model folder), or --model.")
        notices += map(task.command.in_flags, task.check(config))
        path = config.model.model_pth
        classes = config.model.nb_classes or (None if path is None else head_rows(Path(path)))
        model = task.build_model(config, config.merge, num_classes=classes)
        of_run, weights = run is not None, config.model.model_pth
        weights = "official" if weights is None and config.model.starts_trained else weights
    if _value(argv, "--amp") not in (None, "auto", "off"):
        notices.append("--amp has no effect: answers are computed in fp32")
    with start(config.run.device) as world:
        device = world.device
    labels, origin = _labels(model, config, of_run, weights, class_names)
    merge = getattr(model, "merge_config", None)
    architecture = model.pretrained_cfg["architecture"]
    name = f"{architecture}, {setting_name(merge)}"
    said = frozenset(token.partition("=")[0].removeprefix("--") for token in argv if token.startswith("--"))
    return Chosen(model.eval().to(device), config, of_run, name, weights, labels, origin, device, said), notices


def _is_folder(weights: str) -> bool:
    return weights.startswith(hub.PREFIXES) or Path(weights, WEIGHTS).is_file()


def _value(argv: Sequence[str], flag: str) -> str | None:
    """What a flag is followed by."""
    for number, token in enumerate(argv):
        name, equals, value = token.partition("=")
        if name == flag:
            return value if equals else next(iter(argv[number + 1 :]), None)
    return None


def _run_of(given: str | None, argv: Sequence[str]) -> tuple[Path | None, str | None]:
    """The run folder that weights belong to, and their file in it; None where it is not to be used."""
    if given is None or _value(argv, "--config") is not None:
        return None, given
    path = Path(given)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"--model_pth {given} is no run and no model folder: it has no config.json.")
        return path, str(weights_in(path, "--model_pth"))
    beside = path.with_name("config.json")
    named = _value(argv, "--model") is not None
    return (path.parent if not named and path.is_file() and beside.is_file() else None), given


def _in_run(task: Task, run: Path, file: str, argv: Sequence[str]) -> list[str]:
    """The command line of a run's model: its settings, the weights that it left, and what else is given."""
    plain = read_json(run / "config.json")
    if not {"model", "data"} <= plain.keys():
        raise UserError(f"{run / 'config.json'} is none of a run; give --model beside --model_pth {file}.")
    flags = {
        "--config": str(run / "config.json"),
        "--model_pth": file,
        "--delete_head": "False",
        "--weights": "auto",
    }
    if isinstance(plain["model"], dict) and plain["model"].get("pretrained"):
        flags["--pretrained"] = "none"
    others, skip = [], False
    for token in argv:
        name, equals, _ = token.partition("=")
        if skip or name == "--model_pth":
            skip = not skip and not equals
            continue
        others.append(token)
        flags.pop(name, None)
    return [*(part for pair in flags.items() for part in pair), *others]


def _of_folder(task: Task, source: str, argv: Sequence[str]) -> tuple[Any, nn.Module, list[str]]:
    """The model of a folder or repository, merged otherwise where flags say so."""
    model = hub.load(source)
    name = model.pretrained_cfg["architecture"]
    words = [token.partition("=")[0] for token in argv]
    for flag in ("--model", "--input_size", "--config", "--pretrained", "--nb_classes"):
        if flag in words:
            raise UserError(f"{flag} has no effect: {source} says it; leave it out.")
    rest = [*argv]
    at = words.index("--model_pth")
    del rest[at : at + (1 if "=" in rest[at] else 2)]
    config, _, notices = task.command.parse(["--model", name, *rest, "--eval"], model)
    if config.merge != getattr(model, "merge_config", None):
        apply(model, config.merge)
    cfg, data = model.pretrained_cfg, config.data
    own = {name: cfg.get(of) for name, of in PREPARED.items() if hasattr(data, name) and f"--{name}" not in words}
    try:
        data = dataclasses.replace(data, **{name: value for name, value in own.items() if value is not None})
    except ValueError as error:
        notices.append(f"{source} describes its input by what is no setting: {error}")
    return dataclasses.replace(config, data=data), model, notices


def _labels(
    model: nn.Module, config: Any, of_run: bool, weights: str | None, class_names: str | None
) -> tuple[list[str], str]:
    count = model.num_classes
    if not count:
        raise UserError("the model has no head, so it tells no classes; give one with a head.")
    if class_names is not None:
        names = read_names(class_names)
        if len(names) != count:
            raise UserError(
                f"--class_names {class_names} has {len(names)} lines; expected {count}, one for each class of the head."
            )
        return names, class_names
    known = None if weights is None or _is_folder(weights) else trained_on(config.model.model_pth)
    found = model.pretrained_cfg.get("label_names") or (known.label_names if known else ())
    if len(found) == count:
        return [str(name) for name in found], "stored with the weights"
    if count == _IMAGENET and not of_run and config.model.starts_trained:
        info = ImageNetInfo()
        return [info.index_to_description(i) for i in range(count)], "ImageNet-1k's, by number"
    return [f"class {i}" for i in range(count)], "numbers: the weights name no classes"
