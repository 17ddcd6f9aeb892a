"""A run up to its first step: what `--check` does, on any machine, without writing."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from rmeeto.cli.split import split_over
from rmeeto.engine.dist import num_processes
from rmeeto.errors import UserError


class Rehearsal:
    """The part of a `Task` that finds data and weights; what several commands share is looked at once in a process."""

    def __init__(self) -> None:
        # By settings: data of which a batch was read, weights that fit, models.
        self._seen: dict[Any, Any] = {}

    def rehearse(self, config: Any) -> str:
        """All of a run up to its first step, on any machine and without its memory; nothing is written.

        The data is opened as the first of the launcher's processes does; a batch of each kind is read.

        Returns:
            What was found, in a line.

        Raises:
            UserError: what `run` would raise for settings, data, weights or the run folder.
        """
        if config.state_of_folder() == "done":
            return f"{config.folder} is done already"
        with self.prepared(config) as ready:
            data = self._read_data(split_over(ready, num_processes()))
        classes = self._num_classes(config, data)
        with torch.device("meta"):
            found = f"{self._amount(config, data)}; weights {self._fitting(config, classes)}"
            if config.distill.distill and not config.run.eval:
                found += f"; teacher {self._fitting(config, classes, teacher=True)}"
        return found

    def _fitting(self, config: Any, classes: int, teacher: bool = False) -> str:
        """Where weights come from that fit the model; the same ones, however it merges, are read once in a process."""
        run = config.run
        key = os.getcwd(), config.model, config.data.input_size, run.seed, run.eval, classes, teacher
        if key not in self._seen:
            merge = None if teacher else config.merge
            _, self._seen[key] = self._with_weights(config, merge, classes, teacher)
        return self._seen[key]

    def _read_data(self, config: Any) -> Any:
        """The data, after a batch of each kind was read; data of the same settings is opened once in a process."""
        train, size = not config.run.eval, self.meta_model(config).pretrained_cfg["input_size"][-1]
        accumulation = config.optim.accumulation
        key = config.data, config.model, size, config.run.seed, train, accumulation
        if key not in self._seen:
            here = dataclasses.replace(config.data, num_workers=0, max_eval_batches=1, pin_mem=False)
            data = self.build_data(
                dataclasses.replace(config, data=here),
                img_size=size,
                rank=0,
                world_size=num_processes(),
                seed=config.run.seed,
                train=train,
                accumulation=accumulation,
            )
            for kind in ("train", "eval", "test"):
                batches = getattr(data, f"{kind}_batches", None)
                if batches is not None and (train or kind != "train"):
                    if next(batches(0) if kind == "train" else batches(), None) is None:
                        raise UserError(f"nothing of the first {kind} batch can be read; is it what was meant?")
            self._seen[key] = data
        return self._seen[key]
