"""Models as ONNX files: the scan as ONNX's own Scan, the batch size free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.ops.backend import ENVIRONMENT


def to_onnx(model: nn.Module, path: str | Path, example: Tensor | None = None) -> Path:
    """Write a model, dense or merged, as an ONNX file that any runtime can run.

    Args:
        model: exported as in evaluation.
        path: of the file.
        example: an input of two or more samples; None makes one of the model's ``pretrained_cfg["input_size"]``.

    Returns:
        The path. The graph takes any batch size and gives logits.

    Raises:
        UserError: the packages onnx and onnxscript are not there, or no example for a model without an input size.
    """
    try:
        import onnxscript  # noqa: F401  (torch.onnx uses it)
    except ImportError:
        raise UserError(
            "to_onnx: needs the packages onnx and onnxscript; pip install onnx onnxscript"
        ) from None
    if example is None:
        size = getattr(model, "pretrained_cfg", {}).get("input_size")
        if size is None:
            raise UserError(
                f"to_onnx: {type(model).__name__} does not say its input size; give an input as example=x"
            )
        example = torch.zeros(2, *size, device=next(model.parameters()).device)
    training = model.training
    try:
        with torch.no_grad(), _torch_backend():
            batch = torch.export.Dim("batch")
            program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: batch},))
            table = {torch.ops.aten.sort.stable: _stable_sort, torch.ops.aten._cdist_forward.default: _cdist}
            torch.onnx.export(program, custom_translation_table=table, verbose=False).save(str(path))
    finally:
        model.train(training)
    return Path(path)


@contextmanager
def _torch_backend() -> Iterator[None]:
    """Trace torch's own operators, not those of this library, which no other runtime knows."""
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = "torch"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENVIRONMENT]
        else:
            os.environ[ENVIRONMENT] = before


def _stable_sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """``torch.sort(stable=True)`` by ONNX's TopK, whose ties go to the lower index as well."""
    from onnxscript import opset18 as op

    length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)


def _cdist(a: Any, b: Any, p: float, compute_mode: int | None = None) -> Any:
    """``torch.cdist`` for the l1 and l2 distances."""
    from onnxscript import opset18 as op

    difference = op.Sub(
        op.Unsqueeze(a, op.Constant(value_ints=[-2])), op.Unsqueeze(b, op.Constant(value_ints=[-3]))
    )
    reduce = {1.0: op.ReduceL1, 2.0: op.ReduceL2}[p]
    return reduce(difference, op.Constant(value_ints=[-1]), keepdims=0)
