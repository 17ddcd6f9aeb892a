"""Models as ONNX files: the scan as ONNX's own Scan, the batch size free."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.ops.backend import forced


def to_onnx(model: nn.Module, path: str | Path, example: Tensor | None = None) -> Path:
    """Write a model, dense or merged, as an ONNX file that any runtime can run.

    Args:
        model: exported as in evaluation.
        path: of the file.
        example: an input of two or more samples; None makes one of the model's ``pretrained_cfg["input_size"]``.

    Returns:
        The path. The graph takes any batch size and gives logits; its metadata, each entry JSON, says how the input
        is prepared and what the classes are called, as far as the model's ``pretrained_cfg`` does.

    Raises:
        UserError: the packages onnx and onnxscript are not there, no example for a model without an input size, or
            settings that a graph cannot hold.
    """
    name, config = type(model).__name__, getattr(model, "merge_config", None)
    if config is not None and config.shuffle == "random":
        raise UserError(
            f"to_onnx: {name} has shuffle='random', and an ONNX graph draws no random order of tokens; assign "
            "model.merge_config = dataclasses.replace(model.merge_config, shuffle=None, shuffle_rate=0.0)"
        )
    try:
        import onnxscript  # noqa: F401  (torch.onnx uses it)
    except ImportError:
        raise UserError(
            "to_onnx: needs the packages onnx and onnxscript; pip install onnx onnxscript"
        ) from None
    if example is None:
        size = getattr(model, "pretrained_cfg", {}).get("input_size")
        if size is None:
            raise UserError(f"to_onnx: {name} does not say its input size; give an input as example=x")
        example = torch.zeros(2, *size, device=next(model.parameters()).device)
    training = model.training
    try:
        # Torch's own operators: no other runtime knows those of this library.
        with torch.no_grad(), forced("torch"):
            batch = torch.export.Dim("batch")
            program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: batch},))
            graph = torch.onnx.export(program, custom_translation_table=_table(), verbose=False)
            graph.model.metadata_props.update(_metadata(model))
            graph.save(str(path))
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"to_onnx: {name} has what torch cannot write as ONNX: {reason}") from error
    finally:
        model.train(training)
    return Path(path)


def _metadata(model: nn.Module) -> dict[str, str]:
    """What whoever runs the graph needs to know of its input and its outputs."""
    cfg = getattr(model, "pretrained_cfg", {})
    names = ("architecture", "input_size", "mean", "std", "crop_pct", "interpolation", "label_names")
    return {name: json.dumps(cfg[name]) for name in names if cfg.get(name) is not None}


def _table() -> dict[Any, Callable]:
    """Operators that torch does not translate, or not rightly."""
    aten = torch.ops.aten
    return {
        aten.sort.stable: _stable_sort,
        aten._cdist_forward.default: _cdist,
        aten.searchsorted.Tensor: _searchsorted,
        aten.scatter_reduce.two: _scatter_reduce,
    }


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


def _searchsorted(ordered: Any, values: Any, **_: Any) -> Any:
    """``torch.searchsorted`` from the left: how many of the (B, N) entries lie below each of the (B, V) values."""
    from onnxscript import opset18 as op

    below = op.Less(
        op.Unsqueeze(ordered, op.Constant(value_ints=[1])), op.Unsqueeze(values, op.Constant(value_ints=[2]))
    )
    return op.ReduceSum(op.Cast(below, to=7), op.Constant(value_ints=[2]), keepdims=0)  # 7: int64


def _scatter_reduce(x: Any, dim: int, index: Any, src: Any, reduce: str, include_self: bool = True) -> Any:
    """``torch.scatter_reduce`` onto what is there, a mean included, which torch's own translation gets wrong."""
    from onnxscript import opset18 as op

    assert include_self, "nothing in this library reduces without what is there"
    if reduce != "mean":
        reduction = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}[reduce]
        return op.ScatterElements(x, index, src, axis=dim, reduction=reduction)
    total = op.ScatterElements(x, index, src, axis=dim, reduction="add")
    one = op.CastLike(op.Constant(value_float=1.0), x)
    ones, others = op.Expand(one, op.Shape(x)), op.Expand(one, op.Shape(src))
    return op.Div(total, op.ScatterElements(ones, index, others, axis=dim, reduction="add"))
