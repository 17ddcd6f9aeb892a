"""A model's forward pass as one CUDA graph: the host launches once instead of hundreds of times."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError


class Captured:
    """One call as a CUDA graph; calling it replays the work and gives the result, which the next replay overwrites.

    It keeps what it was made of: a graph knows the memory of weights and compiled code, and does not hold it.

    Args:
        run: work on the current device.
        warmup: calls before, on a side stream as a capture needs them: kernels compile and libraries allocate there.

    Raises:
        RuntimeError: it waits for the GPU, or does something else that a graph cannot hold.
    """

    def __init__(self, run: Callable[[], Any], warmup: int = 3) -> None:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(warmup):
                run()
        current.wait_stream(side)
        self._run, self._graph = run, torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                self._output = run()
        except RuntimeError:
            torch.cuda.set_stream(current)  # torch may leave the capture's own stream behind
            raise

    def __call__(self) -> Any:
        self._graph.replay()
        return self._output


class Graphed:
    """A captured forward pass; see `graphed`."""

    def __init__(self, captured: Callable[[], Any], batch: Tensor, model: Any = None) -> None:
        self._captured, self._batch, self._model = captured, batch, model
        self._read = self._weights()

    def _weights(self) -> list[tuple[int, torch.dtype]]:
        if not isinstance(self._model, nn.Module):
            return []
        return [(t.data_ptr(), t.dtype) for t in chain(self._model.parameters(), self._model.buffers())]

    def __call__(self, batch: Tensor) -> Any:
        """Run the pass on a batch of the captured shape; the next call overwrites the result.

        Raises:
            UserError: a batch of another shape or type, or weights that lie elsewhere than when they were captured.
        """
        if self._weights() != self._read:
            raise UserError(
                "graphed: the model's weights have moved since they were captured (.to(), .half(), p.data = ...), and "
                "the graph would read what lies there now. Capture it again, or change weights in place, as "
                "load_state_dict does."
            )
        if batch.shape != self._batch.shape or batch.dtype != self._batch.dtype:
            raise UserError(
                f"graphed: got a batch {tuple(batch.shape)} of {batch.dtype}; this graph was captured for "
                f"{tuple(self._batch.shape)} of {self._batch.dtype}. Capture another for it, or pad the batch."
            )
        self._batch.copy_(batch, non_blocking=True)
        return self._captured()


def graphed(
    model: Callable[[Tensor], Any], batch: Tensor, dtype: torch.dtype | None = None, warmup: int = 3
) -> Graphed:
    """Capture a forward pass. Weights are read at each replay, where they lay at the capture: what changes them in
    place counts, what moves them is refused. Shapes and settings are those of the capture.

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
        try:
            captured = Captured(run, warmup)
        except RuntimeError as error:
            raise UserError(
                f"graphed: the model cannot be captured: {str(error).splitlines()[0]}",
                "A pass that waits for the GPU or whose shapes depend on data cannot be a graph.",
            ) from error
    return Graphed(captured, static, model)
