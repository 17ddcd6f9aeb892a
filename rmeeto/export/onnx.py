"""Models as ONNX files: standard operators alone, each scan a Scan over tokens, the batch size free."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.export.program import exported


def to_onnx(
    model: nn.Module,
    path: str | Path,
    example: Tensor | None = None,
    batch_size: int | None = None,
    names: tuple[str, str] = ("images", "logits"),
) -> Path:
    """Write a model, dense or merged, as an ONNX file that any runtime can run.

    Args:
        model: exported as in evaluation, in fp32.
        path: of the file.
        example: an input; None makes one of the model's input size.
        batch_size: the one that the graph takes; None: any.
        names: of the graph's input and output.

    Returns:
        The path. The graph gives logits; its metadata, each entry JSON, says how the input is prepared and what the
        classes are called, as far as the model's ``pretrained_cfg`` does.

    Raises:
        UserError: the packages onnx and onnxscript are not there, no example for a model without an input size, or
            settings that a graph cannot hold.
    """
    check_packages()
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from rmeeto.export import aten, operators  # which need the packages

    program = exported("to_onnx", model, example, batch_size, steps=True)
    try:
        # What torch would simplify a runtime simplifies as well, in a tenth of the time.
        file = torch.onnx.export(
            program,
            input_names=names[:1],
            output_names=names[1:],
            custom_translation_table={**aten.table(), **operators.table()},
            optimize=False,
            verbose=False,
        )
        RemoveUnusedNodesPass()(file.model)  # products that were written again in parts
        file.model.metadata_props.update(_metadata(model))
        file.save(str(path))
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"to_onnx: {type(model).__name__} has what torch cannot write as ONNX: {reason}") from error
    return Path(path)


def check_packages() -> None:
    """Refuse to begin where a package is missing.

    Raises:
        UserError: which, and how they are installed.
    """
    try:
        import onnxscript  # noqa: F401  (torch.onnx uses it)
    except ImportError:
        raise UserError("to_onnx: needs the packages onnx and onnxscript; pip install onnx onnxscript") from None


def _metadata(model: nn.Module) -> dict[str, str]:
    """What whoever runs the graph needs to know of its input and its outputs."""
    cfg = getattr(model, "pretrained_cfg", {})
    names = ("architecture", "input_size", "mean", "std", "crop_pct", "interpolation", "label_names")
    return {name: json.dumps(cfg[name]) for name in names if cfg.get(name) is not None}
