"""A task's run: models, data and weights built and checked before anything is written, then the work in its folder."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rmeeto.cli.advice import epoch_line, reading_notes, size_notes, summary, training_notes
from rmeeto.cli.command import Command
from rmeeto.cli.main import run_command
from rmeeto.cli.merging import merge_notes
from rmeeto.cli.rehearse import Rehearsal
from rmeeto.cli.split import split_over
from rmeeto.cli.teacher_cache import open_cache, say_cached
from rmeeto.cli.timms import create_model
from rmeeto.data.classes import read_names
from rmeeto.engine import DistillLoss, RunFolder, World, fit, start
from rmeeto.engine.agree import agree, code_digest
from rmeeto.engine.precision import amp_dtype
from rmeeto.engine.progress import clock, wrapped
from rmeeto.engine.teacher_cache import TeacherCache
from rmeeto.errors import UserError
from rmeeto.json_file import read_json
from rmeeto.merge import MergeConfig
from rmeeto.reader import digest
from rmeeto.settings import harmless
from rmeeto.trained_on import TrainedOn, trained_on
from rmeeto.weights import LoadReport


class Parts(NamedTuple):
    """What a run is made of, on `world.device`."""

    model: nn.Module
    teacher: nn.Module | None
    data: Any
    weights: str  # where they come from
    cache: TeacherCache | None = None  # of the teacher's answers


class Task(Rehearsal, ABC):
    """What images and clips share of a run; a task fills in what is its own.

    Args:
        command: its command line.
        samples: what its data consists of, such as "images".
    """

    def __init__(self, command: Command, samples: str) -> None:
        self.command, self.samples = command, samples
        super().__init__()

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a command line; see `run_command`."""
        return run_command(argv, self.command, self.check, self.run, self.rehearse)

    @abstractmethod
    def check_data(self, config: Any, img_size: int) -> None:
        """Refuse data settings that no data could make good; nothing is looked for on the disk."""

    @abstractmethod
    def build_data(self, config: Any, **where: Any) -> Any:
        """The data of one process.

        Args:
            where: img_size, rank, world_size, seed, whether to train, accumulation, and the device.
        """

    @abstractmethod
    def load(self, config: Any, model: nn.Module, name: str, path: str | None, **how: Any) -> LoadReport:
        """Load weights into a model: those of a file, or of its name where `path` is None.

        Args:
            how: ema and new_head, as for `rmeeto.weights.load_weights`.
        """

    @abstractmethod
    def peak_lr(self, config: Any, world: World) -> float:
        """The full learning rate for all the samples of a step."""

    @abstractmethod
    def work(self, config: Any, parts: Parts, world: World, folder: RunFolder) -> dict[str, Any]:
        """Evaluate, or train and evaluate; what result.json will hold."""

    @abstractmethod
    def evaluated(self, data: Any, samples: str) -> str:
        """What there is to evaluate, in words; `samples` follows the number."""

    def labels(self, config: Any) -> tuple[str, ...] | None:
        """What the weights call their outputs, where they or a file say so and the head is not left out.

        Raises:
            UserError: the student's and its teacher's are others, or a file that cannot be read.
        """
        chosen = config.model
        if chosen.class_names is not None and not chosen.delete_head:
            return tuple(read_names(chosen.class_names))
        paths = [] if chosen.delete_head else [chosen.model_pth]
        paths += [chosen.teacher_pth] if config.distill.distill and not config.run.eval else []
        known = [found.label_names for found in map(trained_on, filter(None, paths)) if found and found.label_names]
        if len(set(known)) > 1:
            raise UserError("model.model_pth and model.teacher_pth know other classes, or number them otherwise.")
        return known[0] if known else None

    @abstractmethod
    def trained_on(self, config: Any, parts: Parts) -> TrainedOn:
        """What this run trains on, for those who have its weights."""

    def arguments(self, config: Any) -> dict[str, Any]:
        """Arguments of the model beside those that both tasks have."""
        return {}

    @contextmanager
    def prepared(self, config: Any) -> Iterator[Any]:
        """The settings, with what they need for a while made ready."""
        yield config

    def run(self, config: Any) -> dict[str, Any]:
        """Evaluate or train as the settings say; nothing is written before all of them are known to hold.

        Returns:
            What result.json holds. For a finished run under `resume` the same again, without running.

        Raises:
            UserError: settings, data, weights or a run folder that do not fit together.
        """
        settings, began = config.to_dict(), time.monotonic()
        with start(config.run.device) as world:
            agree(world, {**settings, "code": code_digest()}, harmless(config.sections()))

            def state() -> str:
                return world.on_main(config.state_of_folder)

            if config.run.resume and state() == "done":
                world.print(f"{config.folder} is done already")
                return world.on_main(lambda: read_json(config.folder / "result.json"))
            with self.prepared(config) as ready:
                ready = world.on_every(partial(split_over, ready, world.size))
                parts = world.on_every(lambda: self.build(ready, world))
                if world.size > 1:
                    numbers = {"train": parts.data.num_train, "eval": parts.data.num_eval}
                    agree(world, {"weights": digest(parts.model.state_dict()), "data": numbers})
                parts = parts._replace(cache=open_cache(ready, parts, world))
                if not config.run.resume:  # after the data, whose errors weigh more than a folder's name
                    state()
                trained_on = None if config.run.eval else self.trained_on(config, parts).to_dict()
                with RunFolder(config.folder, settings, world, trained_on) as folder:
                    for line in self.describe(ready, parts, world):
                        world.print(*wrapped(line))
                    result = self.work(ready, parts, world, folder)
                    folder.finish(result)
            world.print(f"time    {clock(time.monotonic() - began)}")
            world.print(summary(result, config.folder, self.samples, parts.data.num_classes))
        return result

    def check(self, config: Any) -> list[str]:
        """What can be checked of the settings without touching data or weights; lines on what they do not do.

        Raises:
            UserError: settings that the model refuses, or that no data could make good.
        """
        model = self.meta_model(config)
        self.check_data(config, model.pretrained_cfg["input_size"][-1])
        size, proj = model.pretrained_cfg["input_size"][-1], model.patch_embed.proj
        notes = size_notes(size, proj.kernel_size[-1], proj.stride[-1])
        return notes + merge_notes(config.model.model, model, config.merge)

    def meta_model(self, config: Any) -> nn.Module:
        """The model on the meta device, without memory: it checks the settings and knows the input's size."""
        key = "model", config.model, config.data.input_size, repr(self.arguments(config))
        if key not in self._seen:  # to make one takes longer than all that is asked of it
            with torch.device("meta"):
                self._seen[key] = self._create(config, config.model.model, None, None, config.model.drop_path)
        try:
            self._seen[key].merge_config = config.merge
        except ValueError as error:
            raise UserError(*str(error).splitlines()) from None
        return self._seen[key]

    def build(self, config: Any, world: World) -> Parts:
        """The student, its dense teacher and the data of this process.

        Raises:
            UserError: the data or the weights are missing or do not fit the model.
        """
        amp_dtype(config.run.amp, world.device)
        data = self.build_data(
            config,
            img_size=self.meta_model(config).pretrained_cfg["input_size"][-1],
            rank=world.rank,
            world_size=world.size,
            seed=config.run.seed,
            train=not config.run.eval,
            accumulation=config.optim.accumulation,
            device=world.device,
        )
        classes = self._num_classes(config, data)
        model, weights = self._with_weights(config, config.merge, classes)
        teacher = None
        if config.distill.distill and not config.run.eval:
            teacher, _ = self._with_weights(config, None, classes, teacher=True)
            teacher.to(world.device)
        return Parts(model.to(world.device), teacher, data, weights)

    def _num_classes(self, config: Any, data: Any) -> int:
        classes = config.model.nb_classes or data.num_classes
        if classes != data.num_classes:
            raise UserError(
                f"nb_classes={classes}, but {config.data.data_set} has {data.num_classes} classes; "
                "leave it out, or give the data set of the weights."
            )
        return classes

    def build_model(
        self,
        config: Any,
        merge: MergeConfig | None,
        *,
        num_classes: int | None = None,
        teacher: bool = False,
    ) -> nn.Module:
        """The model of the settings, merged as `merge` says, with its weights (or some drawn from the seed).

        Args:
            merge: None for the dense model.
            num_classes: of the head; None for the model's own number.
            teacher: the teacher's model and weights instead, without drop path.

        Raises:
            UserError: settings that the model refuses, weights that do not fit, or a new head where none is trained.
        """
        return self._with_weights(config, merge, num_classes, teacher)[0]

    def _with_weights(
        self, config: Any, merge: MergeConfig | None, num_classes: int | None, teacher: bool = False
    ) -> tuple[nn.Module, str]:
        """The model, and where its weights come from."""
        chosen = config.model
        name, path = chosen.model, chosen.model_pth
        if teacher:
            name, path = chosen.teacher or name, chosen.teacher_pth or path
        model = self._create(config, name, merge, num_classes, 0.0 if teacher else chosen.drop_path)
        if path is None and not chosen.starts_trained:
            return model, f"drawn from seed {config.run.seed}"
        new_head = chosen.delete_head and not (teacher and chosen.teacher_pth)
        if new_head and teacher:
            raise UserError(
                "model.delete_head leaves the teacher no head to learn from; give a dense model that was trained on "
                "these classes as model.teacher_pth, or leave out distill.distill."
            )
        if new_head and config.run.eval:
            raise UserError("model.delete_head leaves no head to evaluate; leave it out, or train (without run.eval).")
        ema = {"auto": "auto", "plain": False, "ema": True}[chosen.weights]
        report = self.load(config, model, name, path, ema=ema, new_head=new_head)
        if "head.weight" in report.new and (config.run.eval or teacher):
            raise UserError(
                f"{report.path} brings no head for {num_classes} classes, so there is nothing to "
                f"{'learn from' if teacher else 'test'}; give weights of these classes, or a model.head_map."
            )
        changes = [f"{key} resized" for key in report.resized] + [f"{key} new" for key in report.new]
        changes += ["head new"] if new_head else []
        source = path or f"official, {Path(report.path).name}"
        return model, source + (f" ({', '.join(changes)})" if changes else "")

    def _create(
        self, config: Any, name: str, merge: MergeConfig | None, num_classes: int | None, drop_path: float
    ) -> nn.Module:
        return create_model(
            name,
            seed=config.run.seed,
            merge=merge,
            drop_path_rate=drop_path,
            num_classes=num_classes,
            img_size=config.data.input_size,
            **self.arguments(config),
        )

    def train(
        self,
        config: Any,
        parts: Parts,
        world: World,
        folder: RunFolder,
        groups: Iterable[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Train as the settings say; what `rmeeto.engine.fit` returns."""
        weight, smoothing = config.distill.distill_weight, config.data.smoothing
        criterion = DistillLoss(parts.teacher, weight, smoothing, parts.cache)
        peak = self.peak_lr(config, world)
        result = fit(
            parts.model,
            parts.data,
            criterion,
            config.optim,
            config.run,
            world,
            folder,
            peak_lr=peak,
            groups=groups,
        )
        say_cached(parts.cache, world)
        return result

    def _amount(self, config: Any, data: Any) -> str:
        """Which data there is, and how much."""
        train, noun = f"{data.num_train} {self.samples} to train, ", ""
        if config.run.eval:
            train, noun = "", f" {self.samples}"
        return f"{config.data.data_set}: {train}{self.evaluated(data, noun)}, {data.num_classes} classes"

    def describe(self, config: Any, parts: Parts, world: World) -> list[str]:
        """What is about to run, in a few lines."""
        model, data, optim = parts.model, parts.data, config.optim
        tokens, size = model.num_tokens, model.pretrained_cfg["input_size"]
        merged = f"{tokens[0]}"
        if tokens[0] != tokens[-1]:
            merged += f" to {tokens[-1]} (r = {config.merge.r})"
        frames = "" if len(size) == 3 else f"{size[1]} frames of "
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        dtype = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}
        lines = [
            f"model   {config.model.model}, {config.setting}, {millions:.2f} M parameters, {merged} tokens, "
            f"{frames}{size[-1]} pixels",
            f"weights {parts.weights}",
            f"data    {self._amount(config, data)}",
            f"device  {world.size} x {world.device.type}, {dtype[amp_dtype(config.run.amp, world.device)]}",
        ]
        if not config.run.eval:
            peak = self.peak_lr(config, world)
            lowest = optim.min_lr * (peak / optim.lr if optim.schedule == "iteration" else 1)
            rises = " (it rises: --min_lr lies above)" if peak < lowest else ""
            teacher = "a dense teacher" if config.distill.distill else "no teacher"
            if config.distill.teacher_cache:
                teacher += f" (answers in {config.distill.teacher_cache})"
            if optim.elastic_r:
                teacher += f", each step at 2 or 3 of r = {', '.join(map(str, sorted(optim.elastic_r)))}"
            epochs = f"{optim.epochs} epoch{'s' * (optim.epochs != 1)}"
            lines += [
                f"train   {epochs}, rate {peak:.3g} to {lowest:.3g}{rises}, {teacher}",
                f"        {epoch_line(config, data, world.size, self.samples)}",
            ]
            defaults = self.command.defaults_for(config.model)
            lines += [f"note:   {note}" for note in training_notes(config, data, defaults)]
        lines += [f"note:   {note}" for note in reading_notes(config, data, parts.weights)]
        return [*lines, f"folder  {config.folder}"]
