"""How the micro-batches of an optimizer step are split into processes x accumulation, which changes no result.

A step is `processes * accumulation` micro-batches, numbered `a * processes + rank`. What is drawn for one of them (its
samples, their augmentation, drop path) belongs to its number and step, whichever process works on it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from rmeeto.engine.optim import OptimConfig
from rmeeto.errors import UserError


def split_for(optim: OptimConfig, size: int, before: int | None = None) -> OptimConfig:
    """The settings with the accumulation that gives `size` processes the steps that `optim.processes` would do.

    Args:
        size: processes that run.
        before: processes that an earlier part of this run had, which count where `optim.processes` is None.

    Raises:
        UserError: a step does not divide into so many processes.
    """
    meant = optim.processes or before or size
    step = meant * optim.accumulation
    if step % size:
        possible = ", ".join(str(count) for count in range(1, step + 1) if step % count == 0)
        raise UserError(
            f"a step has {step} micro-batches ({meant} processes x accumulation {optim.accumulation}), which do not "
            f"divide into {size} processes; start one of {possible}."
        )
    return dataclasses.replace(optim, processes=meant, accumulation=step // size)


def seed_micro_batch(seed: int, step: int, number: int) -> None:
    """Seed torch's generators, those of GPUs too, for what the model draws in a micro-batch.

    Args:
        seed: of the run.
        step: optimizer step from the run's start.
        number: of the micro-batch in that step.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)[0] >> 1))
