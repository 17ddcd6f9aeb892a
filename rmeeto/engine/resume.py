"""What a checkpoint holds, and going on from one: it is read, compared with the training as it stands, then put back.

A run may go on with another number of processes, where its steps are split otherwise (see `rmeeto.engine.split`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rmeeto.engine import checkpoint, verify
from rmeeto.engine.watch import merged
from rmeeto.errors import UserError

if TYPE_CHECKING:
    from rmeeto.engine.loop import Training

FILES = ("last.pt", "last.previous.pt")  # the latest checkpoint, and the one before it


@dataclass
class Position:
    """How far a training is."""

    epoch: int = 0
    batch: int = 0  # micro-batches of this epoch that are done
    step: int = 0  # optimizer steps of all epochs that are done


def snapshot(training: Training) -> dict[str, Any]:
    """What last.pt holds. The schedule is a function of the position, so it has no state of its own."""
    world = training.world
    own = {"rng": checkpoint.rng_state(world.device), "means": training.means.state()}
    return {
        "model": training.model.state_dict(),
        "model_ema": None if training.ema is None else training.ema.module.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "stepped": len(training.optimizer.state),  # parameters that have met a gradient
        "scaler": training.scaler.state_dict(),
        "position": dataclasses.asdict(training.at),
        "ranks": world.gather(own),
        "accumulation": training.optim.accumulation,
        "accuracy": dict(training.accuracy),
        "best": training.best,
        "log_lines": training.folder.log_lines(),
        "batches_per_epoch": training.data.batches_per_epoch,
        "data": training.contents,
        **training.folder.trained_on,
    }


def resume(training: Training) -> None:
    """Put back all that `save` wrote, or start anew where there is nothing."""
    world, first = training.world, None
    for path in (training.folder.path / name for name in FILES):
        try:
            state = world.on_every(lambda path=path: read(training, path) if path.exists() else None)
        except UserError as error:
            first = first or error
            continue
        if state is not None:
            if path.name != FILES[0]:
                why = str(first).splitlines()[0] if first else f"{training.folder.path / FILES[0]} is missing"
                world.print(f"note: {why}", f"note: going on from the checkpoint before it, {path}")
            put_back(training, state)
            return
    if first is not None:
        raise first
    for note in world.on_main(training.folder.start):
        world.print(f"note: there is no checkpoint in {training.folder.path}, so the run starts anew; {note}")


def read(training: Training, path: Path) -> dict[str, Any]:
    """A checkpoint, every entry of which fits this training; nothing is changed yet.

    Raises:
        UserError: it cannot be read, is damaged, or is of another run.
    """
    own = _like(training)
    state = checkpoint.load(path, *own, "position", "ranks", "accuracy", "best", "batches_per_epoch")
    other = "Put the right one there, or start anew with another run.name."
    try:
        verify.expect(isinstance(state["ranks"], list), "ranks", state["ranks"], "a list")
        batches, accumulation = _check_split(training, state, path)
        at = state["position"]
        verify.check_position(at, training.optim.epochs, batches, accumulation)
        for name, value in own.items():
            if name != "optimizer":
                verify.check_like(state[name], value, name)
        verify.check_optimizer(state["optimizer"], training.optimizer, started=at["step"] > 0)
        stepped = len(state["optimizer"]["state"])
        wanted = state.get("stepped", stepped)  # files from before it was kept have none
        verify.expect(stepped == wanted, "optimizer.state", f"of {stepped} parameters", wanted)
        verify.check_results(state["accuracy"], state["best"], at["epoch"], training.weights)
        for rank, process in enumerate(state["ranks"]):
            verify.expect(isinstance(process, dict), f"ranks[{rank}]", process, "a process's state")
            verify.check_means(process.get("means"), at["batch"], f"ranks[{rank}].means")
            verify.check_rng(process.get("rng"), training.world.device, f"ranks[{rank}].rng")
        verify.expect(isinstance(state.get("data"), dict | None), "data", state.get("data"), "classes")
        changed = _changes(state.get("data"), training.contents)
    except UserError:
        raise
    except Exception as error:  # to compare with what a file holds, such as a tensor for a number, raises nearly any
        reason = str(error) if isinstance(error, verify.Misfit) else repr(error)
        raise UserError(f"{path} is of another run: its state does not fit this one's ({reason}). {other}") from None
    if changed and training.run.data_changed != "ok":
        raise UserError(
            f"the training data are not those of {path}: {changed}. Put them back, or set run.data_changed to ok to go "
            "on with them (the run is then no longer the uninterrupted one)."
        )
    return state


def _check_split(training: Training, state: dict[str, Any], path: Path) -> tuple[int, int]:
    """The micro-batches an epoch of each process that wrote a checkpoint, and its accumulation.

    Raises:
        UserError: its steps or epochs are not those of this run, however they are split.
    """
    now, own = training.optim.accumulation, (training.world.size, training.data.batches_per_epoch)
    size, batches = len(state["ranks"]), state["batches_per_epoch"]
    accumulation = state.get("accumulation", now)  # files from before it was kept have none
    for name, value in (("batches_per_epoch", batches), ("accumulation", accumulation)):
        verify.expect(type(value) is int and value > 0, name, value, "a whole number")
    if size * accumulation != own[0] * now:
        raise UserError(
            f"{path} was written in steps of {size * accumulation} micro-batches ({size} processes x accumulation "
            f"{accumulation}); here are {own[0]} x {now}. Start 1 to {size * accumulation} processes with the "
            "accumulation that gives as many, or a new run under another run.name."
        )
    if size * batches != own[0] * own[1]:
        raise UserError(
            f"{path} was written by {size} processes with {batches} batches an epoch each; here are {own[0]} with "
            f"{own[1]}. Start as many on the same data, or a new run under another run.name."
        )
    return batches, accumulation


def _like(training: Training) -> dict[str, Any]:
    """The entries of a checkpoint that are like those of a fresh training, but for the numbers in them."""
    return {
        "model": training.model.state_dict(),
        "model_ema": None if training.ema is None else training.ema.module.state_dict(),
        "optimizer": None,
        "scaler": training.scaler.state_dict(),
    }


def put_back(training: Training, state: dict[str, Any]) -> None:
    """Go on from a checkpoint of `read`."""
    world = training.world
    training.model.load_state_dict(state["model"])
    if training.ema is not None:
        training.ema.module.load_state_dict(state["model_ema"])
    # Of the file only what the steps have left; the settings are this run's. Each tensor is a copy: two that a file
    # makes of the same numbers would be counted on twice a step.
    left = {
        parameter: {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}
        for parameter, values in state["optimizer"]["state"].items()
    }
    training.optimizer.load_state_dict({**training.optimizer.state_dict(), "state": left})
    for group, saved in zip(training.optimizer.param_groups, state["optimizer"]["param_groups"]):
        group["lr"] = saved["lr"]  # where no step of the epoch is left to set it
    training.scaler.load_state_dict(state["scaler"])
    training.at = at = Position(**state["position"])
    training.accuracy, training.best = state["accuracy"], state["best"]
    ranks = state["ranks"]
    if len(ranks) == world.size:
        training.means.load(ranks[world.rank]["means"])
        checkpoint.set_rng_state(ranks[world.rank]["rng"], world.device)
    else:  # several micro-batches a step, so that nothing is drawn from where the generators were
        steps = -(-at.batch // state["accumulation"])
        at.batch = min(steps * training.optim.accumulation, training.data.batches_per_epoch)
        training.means.load(merged([process["means"] for process in ranks], world.size))
        world.print(f"note: {len(ranks)} processes before, {world.size} now; a step is the same")
    lines = state.get("log_lines")  # files from before it was kept have none
    lines = lines if isinstance(lines, int) else 0
    for note in world.on_main(lambda: training.folder.start(at.step, partial(_is_done, at), lines)):
        world.print(f"note: {note}")
    world.print(f"resuming at epoch {at.epoch + 1}, micro-batch {at.batch}, step {at.step}")


def _is_done(at: Position, line: Mapping[str, Any]) -> bool:
    """Whether a line of the log was written before the present position was reached."""
    event, epoch, step = line.get("event"), line["epoch"], line["step"]
    return step <= at.step and (event == "step" or (event in ("train", "eval") and epoch <= at.epoch))


def _changes(before: Any, now: dict[str, list[Any]] | None) -> str:
    """How the training data differ from those of a checkpoint, the first classes by name."""
    if not isinstance(before, dict) or now is None:
        return ""
    found = []
    for name in {**before, **now}:
        old, new = before.get(name, [0]), now.get(name, [0])
        if old != new:
            counts = old[0] if isinstance(old, list) and old else "?", new[0]
            how = "other names or sizes" if counts[0] == counts[1] else f"{counts[0]} there, {counts[1]} here"
            found.append(f"class {name}: {how}")
    return "; ".join(found[:3]) + (f" and {len(found) - 3} classes more" if len(found) > 3 else "")
