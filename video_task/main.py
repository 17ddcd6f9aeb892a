"""Test or re-train a merged video model: `python -m video_task.main --help`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python video_task/main.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":  # before torch is imported
    from rmeeto.cli.interrupt import answer_interrupts

    answer_interrupts()

import torch
from torch import nn

from rmeeto.cli.task import Parts, Task
from rmeeto.engine import RunFolder, World, scaled_lr
from rmeeto.engine.precision import amp_dtype
from rmeeto.trained_on import TrainedOn
from rmeeto.weights import LoadReport
from video_task.config import VideoConfig
from video_task.data.digits import smoke_clips
from video_task.data.videos import VideoData, build_data, check_data
from video_task.flags import COMMAND
from video_task.models import load_weights
from video_task.models.weights import read_head_map
from video_task.optim import REFERENCE_BATCH, parameter_groups
from video_task.views import evaluate_views


class VideoTask(Task):
    """Clips: validated on one view of each video after every epoch, tested on all views at the end."""

    @contextmanager
    def prepared(self, config: VideoConfig) -> Iterator[VideoConfig]:
        with smoke_clips() if config.run.smoke else nullcontext(config.data.data_path) as path:
            yield dataclasses.replace(config, data=dataclasses.replace(config.data, data_path=path))

    def check_data(self, config: VideoConfig, img_size: int) -> None:
        check_data(config.data, img_size=img_size, train=not config.run.eval)

    def build_data(self, config: VideoConfig, **where: Any) -> VideoData:
        labels = None if config.model.head_map else self.labels(config)
        return build_data(config.data, num_classes=config.model.nb_classes, labels=labels, **where)

    def arguments(self, config: VideoConfig) -> dict[str, Any]:
        return {"num_frames": config.data.num_frames, "tubelet_size": config.model.tubelet_size}

    def load(self, config: Any, model: nn.Module, name: str, path: str | None, **how: Any) -> LoadReport:
        head_map = config.model.head_map and read_head_map(config.model.head_map)
        return load_weights(model, path, head_map=head_map, **how)

    def peak_lr(self, config: VideoConfig, world: World) -> float:
        clips = config.data.batch_size * config.data.num_sample * config.optim.accumulation
        return scaled_lr(config.optim.lr, clips, world.size, REFERENCE_BATCH)

    def trained_on(self, config: VideoConfig, parts: Parts) -> TrainedOn:
        return config.data.trained_on(parts.model.pretrained_cfg["input_size"], parts.data.class_names)

    def evaluated(self, data: VideoData, samples: str) -> str:
        validated = f"{data.num_eval} to validate, " if data.num_train else ""
        return f"{validated}{data.num_test}{samples} to test on {len(data.views)} views"

    def work(self, config: VideoConfig, parts: Parts, world: World, folder: RunFolder) -> dict[str, Any]:
        model, trained, amp = parts.model, dict[str, Any](), amp_dtype(config.run.amp, world.device)
        if config.run.eval:
            torch.manual_seed(config.run.seed)
            folder.start()
        else:
            model.set_grad_checkpointing(config.model.use_checkpoint, config.model.checkpoint_num)
            result = self.train(config, parts, world, folder, parameter_groups(model, config.optim))
            trained = {"epochs": result["epochs"], "steps": result["steps"], "validation": result}
            if config.run.test_best:
                world.on_every(lambda: load_weights(model, folder.path / "best.pt"))
        tested = evaluate_views(model, parts.data, world, folder.path, amp, config.run.line_every)
        folder.log("test", {"epoch": trained.get("epochs", 0), "step": trained.get("steps", 0)}, tested)
        return {**tested, **trained}


TASK = VideoTask(COMMAND, "videos")
main, run, check, build_model, meta_model = TASK.main, TASK.run, TASK.check, TASK.build_model, TASK.meta_model

if __name__ == "__main__":
    sys.exit(main())
