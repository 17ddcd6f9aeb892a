"""Settings that follow from the weights: a folder in place of their file, and the input that they were trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmeeto.cli.flags import Given
from rmeeto.description import read_description
from rmeeto.json_file import read_json
from rmeeto.trained_on import CONFIG, WEIGHTS, TrainedOn, trained_on, weights_in

_SHAPE = ("tubelet_size",)  # settings without which weights do not fit


def open_folders(given: Mapping[str, Given], start: Any) -> Any:
    """Put the files of weights in the place of their folders, a run's or one that `rmeeto.hub.export` wrote.

    Beside a ``--config``, which says the model and how it merges, a folder brings weights alone.

    Args:
        given: what the command line says, by section; `model_pth` and `teacher_pth` are changed.
        start: all settings that it starts from.

    Returns:
        `start` with the model of `model_pth`'s folder, and how that merges.

    Raises:
        UserError: such a folder whose config.json cannot be read.
    """
    values = given["model"].values
    for name in ("teacher_pth", "model_pth"):
        folder = Path(values.get(name) or "")
        if not values.get(name) or not folder.is_dir():
            continue
        file = weights_in(folder, f"--{name}")
        values[name] = str(file)
        if name == "model_pth" and "config" not in given["command"].values and (folder / CONFIG).is_file():
            model, merge = _described(start, folder / CONFIG, file.name)
            for key, value in model.items():
                values.setdefault(key, value)
            start = dataclasses.replace(start, merge=merge)
    return start


def _described(start: Any, config: Path, weights: str) -> tuple[dict[str, Any], Any]:
    """Name and shape of a folder's model, as settings, and its merging."""
    if weights == WEIGHTS:
        name, arguments, _, merge = read_description(config)
    else:
        run = type(start).from_dict(read_json(config))
        name, arguments, merge = run.model.model, dataclasses.asdict(run.model), run.merge
    shape = {key: arguments[key] for key in _SHAPE if arguments.get(key) is not None and hasattr(start.model, key)}
    return {"model": name, **shape}, merge


def of_weights(given: Mapping[str, Given], start: Any) -> TrainedOn | None:
    """What the student's weights, or else its teacher's, were trained on, where their files say so."""
    if given["run"].values.get("smoke", start.run.smoke):
        return None
    model = given["model"].values
    for name in ("model_pth", "teacher_pth"):
        path = model.get(name, getattr(start.model, name))
        if path is not None:
            return trained_on(path)
    return None


def take(given: Mapping[str, Given], start: Any, section: str, wanted: Mapping[str, Any], whose: str) -> list[str]:
    """Set what a command line leaves open.

    Args:
        given, start: as above.
        section: of the settings.
        wanted: values by setting; None is left out.
        whose: what they are taken from, for the line.

    Returns:
        A line, where any of them is another than it would be.
    """
    values, old = given[section].values, getattr(start, section)
    fresh = "config" not in given["command"].values  # else the settings of a run have been chosen already
    taken = {
        name: value
        for name, value in wanted.items()
        if value is not None and name not in values and getattr(old, name) != value and fresh
    }
    values.update(taken)
    flags = " ".join(f"--{name} {_words(value)}" for name, value in taken.items())
    return [f"{flags}: as {whose}"] if taken else []


def _words(value: Any) -> str:
    return " ".join(f"{number:g}" for number in value) if isinstance(value, tuple) else f"{value}"
