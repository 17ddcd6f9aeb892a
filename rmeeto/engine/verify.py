"""Whether what a checkpoint holds can be the state of a training: looked at before anything of it is used."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

ACCURACY = ("top1", "top5", "loss", "count", "unreadable")


class Misfit(ValueError):
    """What does not fit: the entry, what it is, what was expected."""


def check_like(theirs: Any, own: Any, name: str) -> None:
    """Compare values with those of the same place in a fresh training: keys, kinds, shapes, types; finite numbers.

    Raises:
        Misfit: the first that differs.
    """
    if isinstance(own, Tensor):
        expect(isinstance(theirs, Tensor), name, theirs, "a tensor")
        described, expected = (f"{str(t.dtype)[6:]} {tuple(t.shape)}" for t in (theirs, own))
        expect(described == expected, name, described, expected)
        finite = not theirs.is_floating_point() or bool(theirs.isfinite().all())
        expect(finite, name, "not finite everywhere", "finite numbers")
    elif isinstance(own, Mapping):
        expect(isinstance(theirs, Mapping), name, theirs, "names and values")
        odd = sorted(map(str, theirs.keys() ^ own.keys()))
        expect(
            not odd,
            name,
            f"with{'' if odd and odd[0] in theirs else 'out'} {', '.join(odd[:3])}",
            "the model's",
        )
        for key, value in own.items():
            check_like(theirs[key], value, f"{name}.{key}")
    elif isinstance(own, list | tuple):
        expect(isinstance(theirs, list | tuple), name, theirs, "a list")
        expect(len(theirs) == len(own), name, f"of {len(theirs)} entries", f"{len(own)}")
        for index, (their, value) in enumerate(zip(theirs, own)):
            check_like(their, value, f"{name}[{index}]")
    else:
        expect(type(theirs) is type(own), name, theirs, f"a {type(own).__name__}")
        expect(not isinstance(theirs, float) or math.isfinite(theirs), name, theirs, "a finite number")


def check_optimizer(theirs: Any, optimizer: torch.optim.Optimizer, started: bool) -> None:
    """Compare an AdamW's state with the parameters that it belongs to; torch itself trusts it, and writes beyond it.

    Args:
        theirs: as of `state_dict`.
        optimizer: the fresh one.
        started: whether it has done a step.

    Raises:
        Misfit: settings that differ, or state of other parameters.
    """
    own = optimizer.state_dict()["param_groups"]
    expect(
        isinstance(theirs, Mapping) and theirs.keys() >= {"state", "param_groups"},
        "optimizer",
        theirs,
        "a state",
    )
    groups, states = theirs["param_groups"], theirs["state"]
    expect(
        isinstance(groups, list) and len(groups) == len(own),
        "optimizer.param_groups",
        groups,
        f"{len(own)} groups",
    )
    for number, (group, wanted) in enumerate(zip(groups, own)):
        name = f"optimizer.param_groups[{number}]"
        expect(isinstance(group, Mapping) and "params" in group, name, group, "a group of parameters")
        for key in wanted.keys() & group.keys():  # torch adds some from version to version
            value = group[key]
            if key == "lr":  # set before every step
                expect(type(value) in (int, float) and math.isfinite(value), f"{name}.lr", value, "a rate")
            else:
                same = value == wanted[key] or list(_items(value)) == list(_items(wanted[key]))
                expect(same, f"{name}.{key}", value, wanted[key])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    expect(isinstance(states, Mapping), "optimizer.state", states, "a state for each parameter")
    expect(bool(states) == started, "optimizer.state", f"of {len(states)} parameters", "that of the steps so far")
    for index, state in states.items():
        name = f"optimizer.state[{index}]"
        expect(
            type(index) is int and 0 <= index < len(parameters),
            name,
            "there",
            f"{len(parameters)} parameters",
        )
        parameter = parameters[index].detach()
        own_state = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
        check_like(state, own_state, name)
        steps = float(state["step"])  # 0 where the gradients of every step so far were too large for fp16
        expect(steps >= 0, f"{name}.step", steps, "0 or more")
        expect(bool((state["exp_avg_sq"] >= 0).all()), f"{name}.exp_avg_sq", "negative in places", "squares")


def _items(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def check_position(theirs: Any, epochs: int, batches: int, accumulation: int) -> None:
    """A place in a training of so many epochs of so many micro-batches: behind an optimizer step.

    Raises:
        Misfit: there is no such place.
    """
    keys = ("epoch", "batch", "step")
    expect(
        isinstance(theirs, Mapping) and theirs.keys() == set(keys),
        "position",
        theirs,
        "epoch, batch and step",
    )
    epoch, batch, step = (theirs[key] for key in keys)
    for key, largest in (("epoch", epochs), ("batch", batches if epoch != epochs else 0), ("step", 2**62)):
        value = theirs[key]
        expect(
            type(value) is int and 0 <= value <= largest,
            f"position.{key}",
            value,
            f"a number from 0 to {largest}",
        )
    expect(
        batch % accumulation == 0 or batch == batches,
        "position.batch",
        batch,
        f"a multiple of {accumulation}",
    )
    done = epoch * -(-batches // accumulation) + -(-batch // accumulation)
    expect(step == done, "position.step", step, f"{done} of epoch {epoch} and batch {batch}")


def check_results(accuracy: Any, best: Any, epoch: int, names: tuple[str, ...]) -> None:
    """The latest and the best accuracy, after `epoch` epochs of the weights `names`.

    Raises:
        Misfit: they are none of such a training.
    """
    wanted = names if epoch else ()
    expect(isinstance(accuracy, Mapping) and tuple(accuracy) == wanted, "accuracy", accuracy, f"that of {wanted}")
    for name in wanted:
        _check_accuracy(accuracy[name], f"accuracy.{name}", ())
    if not epoch:
        expect(best is None, "best", best, "none before the first evaluation")
        return
    _check_accuracy(best, "best", ("weights", "epoch"))
    expect(best["weights"] in names, "best.weights", best["weights"], f"one of {names}")
    expect(
        type(best["epoch"]) is int and 1 <= best["epoch"] <= epoch,
        "best.epoch",
        best["epoch"],
        f"1 to {epoch}",
    )


def _check_accuracy(values: Any, name: str, more: tuple[str, ...]) -> None:
    expect(
        isinstance(values, Mapping) and values.keys() == {*ACCURACY, *more},
        name,
        values,
        f"{', '.join(ACCURACY)}",
    )
    for key in ACCURACY:
        value = values[key]
        expect(type(value) in (int, float) and math.isfinite(value), f"{name}.{key}", value, "a finite number")


def check_means(theirs: Any, batch: int, name: str) -> None:
    """The sums of the losses over the `batch` micro-batches of an epoch.

    Raises:
        Misfit: they are of another place.
    """
    keys = {"names", "sums", "count"}
    expect(isinstance(theirs, Mapping) and theirs.keys() == keys, name, theirs, "names, sums and count")
    names, sums = theirs["names"], theirs["sums"]
    for value, kind, key in ((names, str, "names"), (sums, float, "sums")):
        plain = isinstance(value, list) and all(type(item) is kind for item in value)
        expect(plain, f"{name}.{key}", value, f"a list of {kind.__name__}")
    expect(len(names) == len(sums) and bool(names) == bool(batch), name, f"{len(sums)} sums", f"{len(names)}")
    expect(all(map(math.isfinite, sums)), f"{name}.sums", sums, "finite numbers")
    expect(
        type(theirs["count"]) is int and theirs["count"] == batch,
        f"{name}.count",
        theirs["count"],
        f"{batch}",
    )


def check_rng(theirs: Any, device: torch.device, name: str) -> None:
    """The states of the random generators, tried on generators of their own.

    Raises:
        Misfit: one that its generator does not take.
    """
    try:
        version, words, gauss = theirs["python"]
        random.Random().setstate((version, tuple(words), gauss))
        kind, keys, position, has_gauss, cached = theirs["numpy"]
        if type(position) is not int or not 0 <= position <= 624:  # which NumPy does not look at
            raise ValueError(f"NumPy's position is {position!r}")
        np.random.RandomState().set_state((kind, keys, position, has_gauss, cached))
        torch.Generator().set_state(theirs["torch"])
        if device.type == "cuda" and "cuda" in theirs:
            torch.Generator(device).set_state(theirs["cuda"])
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, RuntimeError) as error:
        raise Misfit(f"{name} is no state of the random generators ({' '.join(str(error).split())[:100]})") from None


def expect(holds: bool, name: str, found: Any, expected: Any) -> None:
    """Raise a `Misfit` unless it holds."""
    if not holds:
        raise Misfit(f"{name} is {_short(found)}; expected {_short(expected)}")


def _short(value: Any) -> str:
    if isinstance(value, str | int | float | type(None)):
        return str(value)[:100]
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype)[6:]} {tuple(value.shape)}"
    if isinstance(value, tuple) and all(isinstance(part, str | int | float) for part in value):
        return ", ".join(map(str, value))[:100]
    return f"a {type(value).__name__}"
