"""Blocks compiled one by one: there is less to compile than in a whole model, and nothing of it in a copy."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

from rmeeto.errors import UserError

_BLOCKS = ("layers", "blocks")  # what models call them
_WAYS = 8  # that a block may be called in: in training or not, with each r


def compile_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """Compile each block of a model in place; its parameters keep their names, and copies of it are not compiled.

    Args:
        model: with blocks as `layers` or `blocks`.
        backend: of torch.compile.

    Returns:
        How many there are.

    Raises:
        UserError: a model without.
    """
    found = (getattr(model, name, None) for name in _BLOCKS)
    blocks = next((part for part in found if isinstance(part, nn.ModuleList | nn.Sequential)), None)
    if not blocks:
        raise UserError(
            f"optim.compile_blocks: a {type(model).__name__} has no blocks ({' or '.join(_BLOCKS)}); leave it out."
        )
    limits = torch._dynamo.config  # all blocks share the code of nn.Module's call
    limits.recompile_limit = max(limits.recompile_limit, _WAYS * len(blocks))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 2 * _WAYS * len(blocks))
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return len(blocks)


def eager() -> AbstractContextManager:
    """What is compiled runs as it is written, for a while."""
    return torch.compiler.set_stance("force_eager")
