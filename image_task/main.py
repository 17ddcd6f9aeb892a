"""Evaluate or re-train a merged image model: `python -m image_task.main --help`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python image_task/main.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import torch
from torch import nn

from image_task.config import Config
from image_task.data import ImageData, build_data
from image_task.datasets import loader_of
from image_task.encoded import check_decoder
from image_task.flags import COMMAND
from image_task.models import load_weights
from image_task.models.pretrained import load_official, official
from image_task.transforms import crop_pct, normalisation, train_transform
from rmeeto.cli.task import Parts, Task
from rmeeto.data.augment import build_mixup
from rmeeto.engine import RunFolder, World, evaluate, scaled_lr
from rmeeto.engine.precision import amp_dtype
from rmeeto.trained_on import TrainedOn
from rmeeto.weights import LoadReport


class ImageTask(Task):
    """Images: evaluated whole, trained in epochs that end with an evaluation."""

    def check_data(self, config: Config, img_size: int) -> None:
        if config.model.pretrained:
            official(config.model.model)
        loader_of(config.data.data_set)
        if not config.run.eval:
            train_transform(config.data, img_size)
            build_mixup(config.data, config.model.nb_classes or 1, config.data.batch_size, img_size)

    def build_data(self, config: Config, **where: Any) -> ImageData:
        if config.data.decoder == "nvjpeg" and where["train"] and "device" in where:
            check_decoder(where["device"])
        return build_data(config.data, labels=self.labels(config), **where)

    def load(self, config: Config, model: nn.Module, name: str, path: str | None, **how: Any) -> LoadReport:
        return load_official(model, name, **how) if path is None else load_weights(model, path, **how)

    def peak_lr(self, config: Config, world: World) -> float:
        """Accumulation does not count, but for what it takes to do the work of other processes."""
        processes = config.optim.processes or world.size
        return scaled_lr(config.optim.lr, config.data.batch_size, processes)

    def trained_on(self, config: Config, parts: Parts) -> TrainedOn:
        size = config.img_size
        return TrainedOn(
            input_size=(3, size, size),
            crop_pct=crop_pct(config.data, size),
            label_names=tuple(parts.data.class_names),
            data_set=config.data.data_set,
            **normalisation(config.data),
        )

    def evaluated(self, data: ImageData, samples: str) -> str:
        return f"{data.num_eval}{samples} to evaluate"

    def work(self, config: Config, parts: Parts, world: World, folder: RunFolder) -> dict[str, Any]:
        if not config.run.eval:
            return self.train(config, parts, world, folder)
        torch.manual_seed(config.run.seed)
        folder.start()
        amp = amp_dtype(config.run.amp, world.device)
        result = evaluate(parts.model, parts.data, world, amp, line_every=config.run.line_every)
        folder.log("eval", {"epoch": 0, "step": 0}, result)
        return result


TASK = ImageTask(COMMAND, "images")
main, run, check, build_model = TASK.main, TASK.run, TASK.check, TASK.build_model

if __name__ == "__main__":
    sys.exit(main())
