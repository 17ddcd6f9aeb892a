"""The re-training loop: read `fit`, then `Training.step`; the rest is so that a crash costs only time."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from timm.utils import ModelEmaV3, random_seed
from torch import Tensor, nn

from rmeeto.engine import checkpoint
from rmeeto.engine.captured import Captured
from rmeeto.engine.compiled import compile_blocks, eager
from rmeeto.engine.dist import PATIENCE, World
from rmeeto.engine.elastic import Elastic, mean
from rmeeto.engine.evaluate import Batch, Data, NotFinite, evaluate, rank_errors, unreadable
from rmeeto.engine.feed import on_device
from rmeeto.engine.optim import OptimConfig, build_optimizer, lr_at, set_lr
from rmeeto.engine.parallel import parallel
from rmeeto.engine.precision import amp_dtype, autocast
from rmeeto.engine.progress import WIDTH, Progress, clock
from rmeeto.engine.record import RunConfig, RunFolder
from rmeeto.engine.resume import Position, resume, snapshot
from rmeeto.engine.saving import Saver
from rmeeto.engine.split import seed_micro_batch
from rmeeto.engine.watch import Means, Watch
from rmeeto.engine.watchdog import Watchdog
from rmeeto.errors import UserError


class Pace(NamedTuple):
    """How fast a training is."""

    images_per_s: float
    left_s: float

    def __str__(self) -> str:
        return f"{self.images_per_s:.0f}/s, {clock(self.left_s)} left"


# (images, logits, targets) -> {"loss": ..., and its terms}
Criterion = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


def fit(
    model: nn.Module,
    data: Data,
    criterion: Criterion,
    optim: OptimConfig,
    run: RunConfig,
    world: World,
    folder: RunFolder,
    *,
    peak_lr: float | None = None,
    groups: Iterable[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train a model and evaluate it after every epoch; where the folder holds a checkpoint, go on from there.

    Args:
        model: from images to (B, K) logits, on `world.device`; the same weights on every process.
        data: see `Data`.
        criterion: such as `DistillLoss`; "loss" is minimised, every entry is logged. Its method `place`, if there is
            one, is called before each micro-batch: epoch, number over all processes, images.
        run: seed, amp, log_every and checkpoint_every are read.
        peak_lr: the full learning rate, `optim.lr` scaled for the batch; None for `optim.lr` itself.
        groups: parameter groups, see `build_optimizer`.

    Returns:
        The accuracy after the last epoch as of `evaluate` ("ema": that of the averaged weights), the "best" one
        with its epoch and weights, "epochs" and "steps".

    Raises:
        UserError: a loss that is not finite (before it reaches the weights or a file), a checkpoint of another set-up.
        Preempted: a process was told to leave; the checkpoint is that of the step that it was at.
    """
    training = Training(model, data, criterion, optim, run, world, folder, peak_lr, groups)
    resume(training)
    with training.saver.notice, training.watchdog:
        while training.at.epoch < optim.epochs:
            training.train_epoch()
            training.evaluate_epoch()
    return training.result()


class Training:
    """A training in progress: all that a checkpoint holds, and the steps that move it on."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        criterion: Criterion,
        optim: OptimConfig,
        run: RunConfig,
        world: World,
        folder: RunFolder,
        peak_lr: float | None = None,
        groups: Iterable[dict[str, Any]] | None = None,
    ) -> None:
        self.model, self.data, self.criterion = model, data, criterion
        self.optim, self.run, self.world, self.folder = optim, run, world, folder
        self.peak_lr = optim.lr if peak_lr is None else peak_lr
        self.dtype = amp_dtype(run.amp, world.device)
        self.optimizer = build_optimizer(model, optim, groups)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.dtype == torch.float16)
        self.ema = ModelEmaV3(model, decay=optim.model_ema_decay) if optim.model_ema else None
        if optim.compile_blocks:  # behind the average, which is a copy
            teacher = getattr(criterion, "teacher", None)
            for compiled in (model, *([] if teacher is None else [teacher])):
                compile_blocks(compiled)
        self.parallel: Any = parallel(model, world, optim)
        self.passes = Captured(self.forward_backward, optim, world, getattr(criterion, "cache", None) is not None)
        self.at, self.elastic = Position(), Elastic(model, optim.elastic_r, run.seed)
        self.means, self.watch = Means(world), Watch(world)
        # compiling may take longer than any step
        longer = {"patience": 6 * PATIENCE} if optim.compile_blocks else {}
        self.saver, self.watchdog = Saver(self), Watchdog(world, folder.path, **longer)
        self.place = getattr(criterion, "place", lambda *_: None)
        self.waited = 0.0  # seconds of this epoch, for data
        self.norm: Tensor | None = None  # of the latest gradient that was measured
        self.accuracy: dict[str, Any] = {}  # after the last epoch, by weights ("model", "ema")
        self.best: dict[str, Any] | None = None
        self.trained: dict[str, Any] = {}
        self.weights = ("model",) if self.ema is None else ("model", "ema")
        self.contents = world.on_main(data.contents) if hasattr(data, "contents") else None
        random_seed(run.seed, world.rank)

    def train_epoch(self) -> None:
        at, total = self.at, self.data.batches_per_epoch
        self.parallel.train()
        batches = rank_errors(self.data.train_batches(at.epoch, at.batch), self.world)
        batches = on_device(batches, self.world.device)
        began, images, loss, first = time.perf_counter(), 0, "", at.batch
        self.saver.seconds = self.waited = 0.0
        title = f"epoch {at.epoch + 1}/{self.optim.epochs}"
        with Progress(title, total, at.batch, self.world.is_main, line_every=self.run.line_every) as progress:
            while at.batch < total:
                group = min(self.optim.accumulation, total - at.batch)  # fewer at the end of an epoch
                set_lr(self.optimizer, self.lr(at.batch))
                images += self.step(batches, group)
                at.batch += group
                at.step += 1
                seconds = time.perf_counter() - began
                pace = Pace(images * self.world.size / seconds, self.left(seconds, at.batch - first))
                if at.step % self.run.log_every == 0:
                    means = self.means.all()
                    values = {"lr": self.lr(at.batch - 1), **means, **self.measured()}
                    self.log("step", values, **pace._asdict(), wait_share=self.waited / seconds)
                    loss = f"loss {means['loss']:.3f}, "
                progress.update(group, f"{loss}{pace}", f", data {self.waited / seconds:.0%}")
                self.saver.after_step()
        seconds = time.perf_counter() - began
        process = {
            "seconds": seconds,
            "images_per_s": images * self.world.size / seconds,
            "saving_s": self.saver.seconds,
            "wait_s": self.waited,  # for data
            "unreadable": sum(self.world.gather(unreadable(self.data, "train"))),
        }
        self.stop_if_not_finite()
        self.trained = snapshot(self)  # what an evaluation that is told to leave saves
        self.log("train", {"lr": self.lr(at.batch - 1), **self.means.all()}, **process)

    def left(self, seconds: float, batches: int) -> float:
        """Seconds that are left of the training at the pace of these of this epoch, without its evaluations."""
        left = (self.optim.epochs - self.at.epoch) * self.data.batches_per_epoch - self.at.batch
        return left * seconds / batches

    def measured(self) -> dict[str, float]:
        """What the latest step had beside its losses: the gradient's norm before it was clipped, the last block's
        tokens (the mean over the step's r). Waits for the GPU."""
        norm = math.nan if self.norm is None else self.norm.item()
        found = {"grad_norm": norm} if math.isfinite(norm) else {}
        if hasattr(self.model, "num_tokens"):
            tokens = []
            for r in self.elastic.draw(self.at.step - 1):
                with self.elastic.at(r):
                    tokens.append(self.model.num_tokens[-1])
            found["tokens"] = sum(tokens) / len(tokens)
        return found

    def lr(self, batch: int) -> float:
        """The learning rate of the optimizer step that a micro-batch of this epoch is part of."""
        accumulation = self.optim.accumulation
        num_steps = -(-self.data.batches_per_epoch // accumulation)
        return lr_at(self.at.epoch, self.optim, self.peak_lr, batch // accumulation, num_steps)

    def step(self, batches: Iterator[Batch], group: int) -> int:
        """One optimizer step on the average gradient of `group` micro-batches (at each r); the number of images."""
        count, rs = 0, self.elastic.draw(self.at.step)
        left = group * len(rs)
        for index in range(group):
            if self.world.size * self.optim.accumulation > 1:  # else there is nothing to split
                seed_micro_batch(self.run.seed, self.at.step, index * self.world.size + self.world.rank)
            began = time.perf_counter()
            images, targets = next(batches)
            self.waited += time.perf_counter() - began
            self.place(self.at.epoch, (self.at.batch + index) * self.world.size + self.world.rank, images)
            terms = []
            for r in rs:
                left -= 1
                synchronise = left == 0 or self.world.size == 1
                with nullcontext() if synchronise else self.parallel.no_sync(), self.elastic.at(r):
                    terms.append(self.passes(images, targets, group * len(rs)))
                self.watchdog.beat()
            self.means.add(mean(terms))
            count += len(images)
        # The sums keep what is not finite: every later step is skipped too.
        self.optimizer.found_inf = failed = self.watch.see(self.means.sums, self.at.step)
        if self.scaler.is_enabled():  # it puts what it finds in the gradients there
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, torch.where(failed > 0, torch.nan, 1.0))
        logged = (self.at.step + 1) % self.run.log_every == 0
        if self.optim.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            self.norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip_grad)
        elif logged:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.norm = nn.utils.get_total_norm(gradients) / self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # A graph adds to the same memory every time.
        self.optimizer.zero_grad(set_to_none=not self.passes.active)
        if self.ema is not None:
            self.ema.update(self.model)
        return count

    def forward_backward(self, images: Tensor, targets: Tensor, passes: int) -> dict[str, Tensor]:
        """The losses of a micro-batch, whose gradient is added as one of ``passes``."""
        with autocast(self.world.device, self.dtype):
            losses = self.criterion(images, self.parallel(images), targets)
        self.scaler.scale(losses["loss"] / passes).backward()
        return losses

    def advice(self) -> str:
        """What to try against numbers that are not finite."""
        options = {"a lower optim.lr": True, "clip_grad=1": not self.optim.clip_grad, "amp='off'": self.dtype}
        return f"Try {' or '.join(option for option, is_open in options.items() if is_open)}."

    def evaluate_epoch(self) -> None:
        at, began, every = self.at, time.perf_counter(), self.run.line_every
        weights = {"model": self.model} | ({} if self.ema is None else {"ema": self.ema.module})
        improved = None

        def after_batch() -> None:
            self.watchdog.beat()
            self.saver.in_evaluation(self.trained)

        for name, model in weights.items():
            title = f"evaluating {name}"
            try:
                with eager():
                    self.accuracy[name] = evaluate(model, self.data, self.world, self.dtype, title, after_batch, every)
            except NotFinite:
                raise UserError(  # here the weights are the training's own, so `evaluate`'s advice does not help
                    f"after epoch {at.epoch + 1} the outputs in evaluation are not finite: the training has diverged.",
                    self.advice(),
                ) from None
            self.log("eval", {"weights": name, **self.accuracy[name]}, seconds=time.perf_counter() - began)
            if self.best is None or self.accuracy[name]["top1"] > self.best["top1"]:
                self.best, improved = {"weights": name, "epoch": at.epoch + 1, **self.accuracy[name]}, model
        self.world.print(*self.summary())
        self.means.clear()
        at.epoch, at.batch = at.epoch + 1, 0
        if improved is not None:  # before last.pt: a run that is cut in between repeats the epoch
            state = {"model": improved.state_dict(), **(self.best or {}), **self.folder.trained_on}
            self.world.on_main(lambda: checkpoint.save(self.folder.path / "best.pt", state))
        self.saver.save()

    def stop_if_not_finite(self) -> None:
        """Raise for the first step that was skipped. Waits for the GPU."""
        self.watch.raise_if_failed(self.at.epoch, self.advice())

    def log(self, event: str, values: dict[str, Any], **process: float) -> None:
        self.stop_if_not_finite()
        self.folder.log(event, {"epoch": self.at.epoch + 1, "step": self.at.step}, values, **process)

    def summary(self) -> list[str]:
        losses = " ".join(f"{name} {value:.4f}" for name, value in self.means.all().items())
        top1 = "  ".join(
            [f"top-1 {a['top1']:.2f}" + f" ({name})" * (name != "model") for name, a in self.accuracy.items()]
        )
        text = f"epoch {self.at.epoch + 1}/{self.optim.epochs}  {losses}  {top1}"
        return textwrap.wrap(text, WIDTH, subsequent_indent=" " * 8)

    def result(self) -> dict[str, Any]:
        averaged = {"ema": self.accuracy["ema"]} if "ema" in self.accuracy else {}
        progress = {"best": self.best, "epochs": self.at.epoch, "steps": self.at.step}
        return {**self.accuracy["model"], **averaged, **progress}
