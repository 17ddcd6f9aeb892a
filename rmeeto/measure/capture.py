"""What goes into a block's mixer and what comes out, token by token, for measurements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from rmeeto.errors import UserError
from rmeeto.nn import BiMamba

PARTS = ("mixer", "forward", "backward", "both")


@torch.no_grad()
def capture(
    model: nn.Module,
    batches: Iterable[Tensor],
    blocks: Sequence[int],
    part: str = "mixer",
    num_tokens: int = 8,
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Inputs and outputs of some blocks' mixers at some tokens.

    Args:
        model: a Vision Mamba or a Vision Transformer, merging or not, in evaluation mode; it is left as it was.
        batches: its inputs.
        blocks: their numbers.
        part: "mixer": the attention or the whole mixer, (B, L, C) to (B, L, C). Of a bidirectional Mamba also the
            "forward" scan, the "backward" scan, or "both" added (halved as the model does): from the projected tokens
            to the gated output, (B, L, D).
        num_tokens: places, evenly spread over the tokens that a block sees.

    Returns:
        x and y (N, blocks, tokens, C), and the places of the tokens in each block.

    Raises:
        UserError: a block or part that the model does not have, a block twice, or no tokens.
    """
    found = mixers(model)
    if not blocks or not all(0 <= block < len(found) for block in blocks):
        raise UserError(f"capture: blocks {list(blocks)}; expected some of 0 to {len(found) - 1}")
    if len(set(blocks)) < len(blocks):
        raise UserError(f"capture: blocks {list(blocks)} has one twice; give each once")
    if num_tokens < 1:
        raise UserError(f"capture: num_tokens={num_tokens}; expected 1 or more")
    if part not in PARTS or (part != "mixer" and not isinstance(found[0], BiMamba)):
        known = PARTS if isinstance(found[0], BiMamba) else PARTS[:1]
        raise UserError(f"capture: part {part!r}; this model has {', '.join(known)}")
    kept: dict[int, list[tuple[Tensor, Tensor]]] = {block: [] for block in blocks}
    places: dict[int, Tensor] = {}

    def keep(block: int, mixer: nn.Module, arguments: tuple, output: Tensor | tuple) -> None:
        x, y = arguments[0], output[0] if isinstance(output, tuple) else output
        if part != "mixer":
            x, forward, backward = mixer.scans(x)
            both = (forward + backward) / (2 if mixer.average else 1)
            y = {"forward": forward, "backward": backward, "both": both}[part]
        at = torch.linspace(0, x.shape[1] - 1, min(num_tokens, x.shape[1]), device=x.device).round().long()
        places[block] = at
        kept[block].append((x[:, at].float().cpu(), y[:, at].float().cpu()))

    hooks = [found[block].register_forward_hook(lambda *given, block=block: keep(block, *given)) for block in kept]
    try:
        device = next(model.parameters()).device
        for batch in batches:
            model(batch.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    if not all(kept.values()):
        raise UserError("capture: there are no batches")
    x, y = (torch.stack([torch.cat([pair[i] for pair in kept[block]]) for block in kept], 1) for i in (0, 1))
    return x, y, [places[block].tolist() for block in kept]


def mixers(model: nn.Module) -> list[nn.Module]:
    """The part of each block in which tokens meet: a Mamba's mixer, a Transformer's attention.

    Raises:
        UserError: a model without such blocks.
    """
    blocks = getattr(model, "layers", None) or getattr(model, "blocks", None) or []
    found = [getattr(block, "mixer", None) or getattr(block, "attn", None) for block in blocks]
    if not found or None in found:
        raise UserError(f"capture: {type(model).__name__} has no blocks with a mixer or an attention")
    return found
