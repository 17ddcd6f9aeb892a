"""A model as a graph of torch: what every way of export starts from."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.ops.backend import forced, left_whole


def to_program(
    model: nn.Module, path: str | Path, example: Tensor | None = None, batch_size: int | None = None
) -> Path:
    """Write a model, dense or merged, as a program of torch's own operators, which runs where this library is not.

    ``torch.export.load(path).module()`` is a function of a batch. What `torch.export.save` makes of a model elsewhere
    holds this library's operators, and loads where ``rmeeto.ops`` is imported.

    Args:
        model: exported as in evaluation, on the CPU in fp32.
        path: of the file; ends in .pt2.
        example: an input; None makes one of the model's input size.
        batch_size: the one that the program takes; None: any.

    Returns:
        The path. The program gives logits; it is slower than the model (to_package is not).

    Raises:
        UserError: another ending, no example for a model without an input size, or settings that a graph cannot hold.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise UserError(f"to_program: path={path}; expected a file that ends in .pt2")
    program = exported("to_program", model, example, batch_size, whole=False)
    torch.export.save(program.run_decompositions({}), path)
    return path


def exported(
    caller: str,
    model: nn.Module,
    example: Tensor | None,
    batch_size: int | None,
    whole: bool = True,
    steps: bool = False,
) -> torch.export.ExportedProgram:
    """The model in evaluation, on the CPU in fp32, as one graph.

    Args:
        caller: the function that messages name.
        model: left as it is.
        example: an input; None: of the size that its ``patch_embed`` or its ``pretrained_cfg`` says.
        batch_size: the one that the graph takes; None: any.
        whole: whether each of this library's operators is one node; else all are made of torch's.
        steps: whether a scan's node projects its step sizes, see `left_whole`.

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
        size = _input_size(model)
        if size is None:
            raise UserError(f"{caller}: {name} does not say its input size; give an input as example=x")
        example = torch.zeros(1, *size)
    example = example[:1].cpu().float().expand(batch_size or 2, *example.shape[1:]).clone()
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in model.parameters()):
        model = copy.deepcopy(model).to("cpu", torch.float32)
    training = {module: module.training for module in model.modules()}
    shapes = ({0: torch.export.Dim("batch")},) if batch_size is None else None
    try:
        with torch.no_grad(), left_whole(steps) if whole else forced("torch"):
            return torch.export.export(model.eval(), (example,), dynamic_shapes=shapes, strict=False)
    finally:
        for module, was in training.items():
            module.training = was


def _input_size(model: nn.Module) -> tuple[int, ...] | None:
    """Shape of an input: of a Transformer of timm's as it was made, whatever its weights are described with."""
    size = getattr(model, "pretrained_cfg", {}).get("input_size")
    embed = getattr(model, "patch_embed", None)
    made, proj = getattr(embed, "img_size", None), getattr(embed, "proj", None)
    if isinstance(made, tuple) and isinstance(proj, nn.Conv2d):
        return proj.in_channels, *made
    return size
