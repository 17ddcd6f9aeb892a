"""The settings of a run for the processes that are there."""

from __future__ import annotations

import dataclasses
from typing import Any

from rmeeto.engine.split import split_for
from rmeeto.json_file import read_json


def split_over(config: Any, size: int) -> Any:
    """The settings for `size` processes; a run that goes on keeps the steps that it began with.

    Raises:
        UserError: a step does not divide into so many processes.
    """
    if config.run.eval:
        return config
    first = read_json(file).get("processes") if (file := config.folder / "env.json").exists() else None
    optim = split_for(config.optim, size, first if isinstance(first, int) and config.run.resume else None)
    data, old, new = config.data, config.optim.accumulation, optim.accumulation
    if new != old:
        batches, rest = divmod(data.max_train_batches * new, old)
        batches = -(-data.max_train_batches // old) * new if rest else batches
        data = dataclasses.replace(data, max_train_batches=batches)
    return dataclasses.replace(config, optim=optim, data=data)
