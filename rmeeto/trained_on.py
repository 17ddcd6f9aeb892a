"""What weights were trained on, which travels with them: how the input was prepared, what the outputs are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from rmeeto.description import unfit_input
from rmeeto.engine.record import TRAINED_ON
from rmeeto.errors import UserError
from rmeeto.json_file import read_json
from rmeeto.reader import Unreadable, read
from rmeeto.settings import accepts

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of a model folder
_IN_FOLDERS = (WEIGHTS, "best.pt", "last.pt")  # of a model's or a run's, the first that is there
_MOST_CLASSES = 1_000_000
_LARGEST_FILE = 2**30  # bytes of a checkpoint that is read for this entry alone


@dataclass(frozen=True)
class TrainedOn:
    """How the input was prepared, and what the outputs are called.

    Args:
        input_size: channels, the frames of a clip, height and width.
        mean, std: of the normalised input, by channel.
        crop_pct: share of the resized edge that evaluation sees.
        interpolation: of the resizing.
        label_names: of the classes, by their number.
        data_set: its kind, as --data_set has it.
    """

    input_size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str = "bicubic"
    label_names: tuple[str, ...] = ()
    data_set: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The plain form, for JSON and checkpoints."""
        plain = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def pretrained_cfg(self) -> dict[str, Any]:
        """What a model's ``pretrained_cfg`` says of it, as timm has it."""
        cfg = self.to_dict()
        del cfg["data_set"]
        return {**cfg, "num_classes": len(self.label_names)}


def weights_in(folder: Path, flag: str) -> Path:
    """The file of weights of a model's or a run's folder.

    Raises:
        UserError: there is none; it names the flag that the folder was given to.
    """
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{flag} {folder} is a folder without {', '.join(_IN_FOLDERS[:-1])} or {_IN_FOLDERS[-1]}; give the folder of "
        "a model or of a run that has trained, or a file of weights."
    )


def trained_on(weights: str | Path | None, content: Mapping[str, Any] | None = None) -> TrainedOn | None:
    """What the weights of a file were trained on, where the file, or the config.json beside it, says so.

    Args:
        weights: as `rmeeto.weights.load_weights` takes it. What cannot be read is for that to complain of.
        content: of the file, where it has been read already.
    """
    if weights is None:
        return None
    path = Path(weights)
    try:
        config = read_json(path.parent / CONFIG)
    except (UserError, OSError):
        config = {}
    if path.name == WEIGHTS:
        return _of_model_folder(config)
    if TRAINED_ON in config:
        return _checked(config[TRAINED_ON])
    try:
        if content is None and path.suffix.lower() != ".safetensors" and path.stat().st_size <= _LARGEST_FILE:
            content = read(path, mapped=True)
    except (Unreadable, OSError):
        return None
    return _checked(content.get(TRAINED_ON)) if isinstance(content, dict) else None


def _of_model_folder(config: Mapping[str, Any]) -> TrainedOn | None:
    cfg = config.get("pretrained_cfg")
    if not isinstance(cfg, dict):
        return None
    arguments = config.get("model_args")
    frames = arguments.get("num_frames") if isinstance(arguments, dict) else None
    size = cfg.get("input_size")
    if frames is not None and isinstance(size, list):
        size = [*size[:1], frames, *size[1:]]
    names = config.get("label_names") or ()
    known = {name: cfg.get(name) for name in ("mean", "std", "crop_pct", "interpolation")}
    return _checked({"input_size": size, **known, "label_names": names})


def _checked(values: Any) -> TrainedOn | None:
    """From the plain form; None where it is not that of `TrainedOn`, for a file may come from anybody."""
    hints = get_type_hints(TrainedOn)
    if not isinstance(values, dict) or not set(values) <= set(hints):
        return None
    if not all(accepts(hints[name], value) for name, value in values.items()):
        return None
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        found = TrainedOn(**plain)
    except TypeError:  # one is missing
        return None
    sizes, names = found.input_size, found.label_names
    within = len(sizes) in (3, 4) and len(found.mean) == len(found.std) == sizes[0] and len(names) <= _MOST_CLASSES
    within = within and not unfit_input(plain)
    return found if within and len(set(names)) == len(names) else None
