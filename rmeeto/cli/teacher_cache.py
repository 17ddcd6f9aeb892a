"""The cache of a run's teacher: what its answers depend on, and `--teacher cache`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmeeto.cli.flags import Given
from rmeeto.engine import World
from rmeeto.engine.precision import amp_dtype
from rmeeto.engine.teacher_cache import TeacherCache
from rmeeto.reader import digest

WORD, FOLDER = "cache", "teacher-cache"
# Of the data: how much of an epoch is read, how evaluation sees it, and what is the student's alone.
_OTHERS = ("max_train_batches", "max_eval_batches", "eval_crop_ratio", "smoothing")


def open_cache(config: Any, parts: Any, world: World) -> TeacherCache | None:
    """The cache that the settings ask for; all processes are to call this.

    Args:
        config: all settings, `optim.accumulation` that of this number of processes.
        parts: teacher and data of the run.

    Raises:
        UserError: the folder holds answers to something else.
    """
    folder, teacher, data = config.distill.teacher_cache, parts.teacher, parts.data
    if teacher is None or folder is None:
        return None
    contents = world.on_main(data.contents) if hasattr(data, "contents") else {}
    made_of = {
        "teacher": {
            "model": config.model.teacher or config.model.model,
            "weights": digest(teacher.state_dict()),
        },
        "data": _read_by_teacher(config.data) | {"contents": digest(contents)},
        "seed": config.run.seed,
        "micro_batches_of_a_step": world.size * config.optim.accumulation,
        "amp": str(amp_dtype(config.run.amp, world.device)),
    }
    return TeacherCache(Path(folder), made_of, data.num_classes, config.distill.teacher_top, world)


def _read_by_teacher(data: Any) -> dict[str, Any]:
    fields = [field for field in dataclasses.fields(data) if not field.metadata.get("harmless")]
    return {field.name: getattr(data, field.name) for field in fields if field.name not in _OTHERS}


def say_cached(cache: TeacherCache | None, world: World) -> None:
    """How many micro-batches of this run have skipped the teacher, over all processes."""
    if cache is not None:
        cache.close()
        found, asked = (sum(counts) for counts in zip(*world.gather((cache.found, cache.asked))))
        world.print(f"teacher {found} of {found + asked} micro-batches were answered by {cache.folder}")


def name_cache(given: Mapping[str, Given], start: Any) -> None:
    """Make `--teacher cache` the cache beside the run folders; the teacher is the one that it would be without."""
    model, distill = given["model"], given["distill"]
    if model.values.get("teacher") == WORD:
        del model.values["teacher"]
        output = given["run"].values.get("output_dir", start.run.output_dir)
        distill.values.setdefault("teacher_cache", str(Path(output) / FOLDER))
        distill.flags.setdefault("teacher_cache", model.flags.pop("teacher", "--teacher"))
