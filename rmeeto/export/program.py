"""A model as a graph of torch: what every way of export starts from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.ops.backend import left_whole


def exported(
    caller: str, model: nn.Module, example: Tensor | None, batch_size: int | None
) -> torch.export.ExportedProgram:
    """The model in evaluation, on the CPU in fp32, as one graph in which this library's operators are whole.

    Args:
        caller: the function that messages name.
        model: left as it is.
        example: an input; None: of the model's ``pretrained_cfg["input_size"]``.
        batch_size: the one that the graph takes; None: any.

    Raises:
        UserError: no example for a model without an input size, or a random order of tokens.
    """
    name, config = type(model).__name__, getattr(model, "merge_config", None)
    if config is not None and config.shuffle == "random":
        raise UserError(
            f"{caller}: {name} has shuffle='random', and a graph draws no random order of tokens; assign "
            "model.merge_config = dataclasses.replace(model.merge_config, shuffle=None, shuffle_rate=0.0)"
        )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"{caller}: batch_size={batch_size}; expected 1 or more, or None for any")
    if example is None:
        size = getattr(model, "pretrained_cfg", {}).get("input_size")
        if size is None:
            raise UserError(f"{caller}: {name} does not say its input size; give an input as example=x")
        example = torch.zeros(1, *size)
    example = example[:1].cpu().float().expand(batch_size or 2, *example.shape[1:]).clone()
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in model.parameters()):
        model = copy.deepcopy(model).to("cpu", torch.float32)
    training = model.training
    shapes = ({0: torch.export.Dim("batch")},) if batch_size is None else None
    try:
        with torch.no_grad(), left_whole():
            return torch.export.export(model.eval(), (example,), dynamic_shapes=shapes, strict=False)
    finally:
        model.train(training)
