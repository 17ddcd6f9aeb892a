"""A model's forward pass as one CUDA graph: the host launches once instead of hundreds of times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError


class Graphed:
    """A captured forward pass; see `graphed`."""

    def __init__(self, graph: torch.cuda.CUDAGraph, batch: Tensor, output: Any) -> None:
        self._graph, self._batch, self._output = graph, batch, output

    def __call__(self, batch: Tensor) -> Any:
        """Run the pass on a batch of the captured shape; the next call overwrites the result.

        Raises:
            UserError: a batch of another shape or type.
        """
        if batch.shape != self._batch.shape or batch.dtype != self._batch.dtype:
            raise UserError(
                f"graphed: got a batch {tuple(batch.shape)} of {batch.dtype}; this graph was captured for "
                f"{tuple(self._batch.shape)} of {self._batch.dtype}. Capture another for it, or pad the batch."
            )
        self._batch.copy_(batch, non_blocking=True)
        self._graph.replay()
        return self._output


def graphed(
    model: Callable[[Tensor], Any], batch: Tensor, dtype: torch.dtype | None = None, warmup: int = 3
) -> Graphed:
    """Capture a forward pass. Weights are read at each replay; shapes and settings are those of the capture.

    Args:
        model: a module in evaluation mode, or any function of a batch.
        batch: an input, on a CUDA device.
        dtype: of autocast; None for none.
        warmup: passes before the capture: what kernels compile and libraries allocate at first use happens there.

    Returns:
        A function of a batch of the same shape and type; its result is overwritten by the next call.

    Raises:
        UserError: no CUDA device, a module in training mode, or a model that cannot be captured.

    Example:
        >>> fast = graphed(model.cuda().eval(), images, dtype=torch.bfloat16)
        >>> logits = fast(images).clone()
    """
    if batch.device.type != "cuda":
        raise UserError(
            f"graphed: CUDA graphs need a CUDA device; this batch is on {batch.device}. Call the model itself."
        )
    if isinstance(model, nn.Module) and model.training:
        raise UserError("graphed: the model is in training mode; call .eval() on it first.")
    static = batch.detach().clone()

    def run() -> Any:
        # A cast kept from the capture would not follow later changes of the weights.
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            return model(static)

    with torch.inference_mode(), torch.cuda.device(batch.device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warmup):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                output = run()
        except RuntimeError as error:
            raise UserError(
                f"graphed: the model cannot be captured: {str(error).splitlines()[0]}\n"
                "A pass that waits for the GPU or whose shapes depend on data cannot be a graph."
            ) from error
    return Graphed(graph, static, output)
