"""How a CPU runs a model: its linear weights in another order in memory, products by another library of torch's, or
a batch by samples.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def by_columns(model: nn.Module) -> nn.Module:
    """Store the weights of linear layers by columns, in place: what multiplies an input feature side by side.

    Shapes, values and the state dict stay as they are; only their order in memory changes, which spares a product on a
    CPU its transposed reading. Rounding may differ in the last bits. For inference: an optimizer keeps the order of its
    own state.

    Args:
        model: in any type, on the CPU.

    Returns:
        The model.
    """
    for module in _linear_layers(model):
        module.weight.data = module.weight.data.t().contiguous().t()
    return model


class OneDNNLinear(nn.Linear):
    """A linear layer that multiplies by oneDNN where nothing is to be differentiated, in fp32 on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        plain = {input.dtype, self.weight.dtype} == {torch.float32} and input.device.type == "cpu"
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not plain or torch.compiler.is_compiling():
            return super().forward(input)
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")


def by_onednn(model: nn.Module) -> nn.Module:
    """Let the linear layers of a model multiply by oneDNN instead of MKL, in place, by the operator that torch's own
    compiler calls. Which of the two is faster depends on processor and batch: time it (`python -m benchmarks formats`).

    Parameters, state dict and training stay as they are. Rounding may differ in the last bits. Projections of the step
    size are left: the scan reads their weights.

    Args:
        model: evaluated in fp32 on a CPU; else nothing changes.

    Returns:
        The model.
    """
    if torch.backends.mkldnn.is_available():
        for module in _linear_layers(model, but="dt_proj"):
            module.__class__ = OneDNNLinear
    return model


class BySamples(nn.Module):
    """A model whose batch is shared out among threads, each of which takes its samples through all layers alone.

    Else every operator is shared out and every thread waits for the others after each, while what one has written
    another reads. The output is the same to the last bit as far as an operator's does not depend on the batch size.

    Args:
        model: gives a tensor that has a row a sample.
        threads: that share a batch; None: `torch.get_num_threads()`.
    """

    def __init__(self, model: nn.Module, threads: int | None = None) -> None:
        super().__init__()
        model = model.model if isinstance(model, BySamples) else model  # whose threads would wait for themselves
        self.model, self.threads = model, threads
        self.training = getattr(model, "training", False)

    @property
    def merge_config(self) -> Any:
        """The model's, to re-configure it in place."""
        return self.model.merge_config

    @merge_config.setter
    def merge_config(self, config: Any) -> None:
        self.model.merge_config = config

    @property
    def num_tokens(self) -> list[int]:
        """The model's."""
        return self.model.num_tokens

    def forward(self, x: Tensor) -> Tensor:
        """As the model; with gradients, autocast or a GPU, of one sample, or shuffled by lot, by the model itself."""
        threads = min(len(x), self.threads or torch.get_num_threads())
        config = getattr(self.model, "merge_config", None)
        if config is not None and config.shuffle == "random":  # one order for the batch, drawn once
            return self.model(x)
        if threads < 2 or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.device.type != "cpu":
            return self.model(x)
        inference = torch.is_inference_mode_enabled()

        def run(part: Tensor) -> Tensor:
            with torch.inference_mode(inference), torch.no_grad():  # which a thread has for itself
                return self.model(part)

        return torch.cat(list(_one_core_each(threads, os.getpid()).map(run, x.tensor_split(threads))))


@cache
def _one_core_each(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads in which an operator is not shared out any further; a forked process has its own."""
    everywhere = torch.get_num_threads()
    pool, met = ThreadPoolExecutor(threads, "samples"), Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread's first question takes over the number of all, its own is set after that
        torch.set_num_threads(1)
        met.wait()

    for _ in range(threads):
        pool.submit(start)
    met.wait()
    torch.set_num_threads(everywhere)  # for the threads that others start later on
    return pool


def _linear_layers(model: nn.Module, but: str | None = None) -> list[nn.Linear]:
    named = model.named_modules()
    return [module for name, module in named if type(module) is nn.Linear and not (but and but in name)]
