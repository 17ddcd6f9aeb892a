"""The cost of a model in multiply-accumulates, part by part, from its shapes and its schedule alone.

L tokens, C channels, D inner channels, N states, R rank of the step size, K kernel, M channels of the merge's metric.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from rmeeto.errors import UserError
from rmeeto.merge import MergeConfig, Tokens
from rmeeto.merge.schedule import asked_and_removed
from rmeeto.nn.mamba import linear_weights, scan_macs

CONVENTIONS = ("paper", "full")
_SCAN_PARTS = ("in_proj", "conv", "x_proj", "dt_proj", "scan", "out_proj", "matching", "merging")
_ATTENTION_PARTS = ("qkv", "attention", "proj", "mlp", "matching", "merging")


class Flops(NamedTuple):
    """Multiply-accumulates of one sample.

    Attributes:
        total: sum of the parts.
        parts: by name; zero where the model has the part but does not use it.
    """

    total: int
    parts: dict[str, int]


def count_flops(model: nn.Module, input_size: int | Sequence[int], convention: str = "paper") -> Flops:
    """Count the multiply-accumulates of one forward pass of one sample. Nothing is run.

    Args:
        model: a Vision Mamba or a Vision Transformer, dense or merged.
        input_size: side of the image in pixels, (H, W), (3, H, W), or with frames (T, H, W), (3, T, H, W); what the
            model was made for.
        convention: ``paper``: what the authors' counter says. One direction only of convolution, x_proj, dt_proj and
            scan; the matching at each merging block, also where nothing is left to remove (r = 0); r * C for the
            merging with the r that was asked for, before any clamp.
            ``full``: both directions, and only merges that remove tokens, with the r that they remove.
            In both, a matching costs what its rule says (one that says nothing: all pairs, as the exact one).

    Returns:
        Total and parts: patch, in_proj, conv, x_proj, dt_proj, scan, out_proj, matching, merging, head; for a
        Transformer (both conventions the same) patch, qkv, attention, proj, mlp, matching, merging, head.
        Norms, activations and biases are not counted.

    Raises:
        UserError: an unknown convention, a model of another kind, or an input size that the model does not take.

    Source: R-MeeTo, arXiv 2412.12496, whose published figures the paper's convention gives.

    Example:
        >>> count_flops(timm.create_model("vim_tiny_patch16_224", merge=MergeConfig(r=5)), 224).total
        1284470400
    """
    if convention not in CONVENTIONS:
        raise UserError(f"count_flops: convention={convention!r}; expected one of {CONVENTIONS}")
    layers, blocks = _blocks(model, "layers", "mixer"), _blocks(model, "blocks", "attn")
    if not (layers or blocks) or not hasattr(getattr(model, "patch_embed", None), "proj"):
        raise UserError(
            f"count_flops: got a {type(model).__name__}; expected a Vision Mamba (layers with a mixer) or a Vision "
            "Transformer (blocks with attention), with a convolution patch_embed.proj"
        )
    patches = _num_patches(model, input_size)
    parts = {"patch": patches * model.patch_embed.proj.weight.numel()}
    parts |= _scans(model, layers, patches, convention) if layers else _attentions(model, blocks, patches)
    parts["head"] = _linear(model.head) + _linear(getattr(model, "head_dist", None))
    return Flops(sum(parts.values()), parts)


def token_reduction_ratio(model: nn.Module) -> float:
    """Share of the tokens that is gone, averaged over the blocks: 0.14 for 24 blocks, 197 tokens and r = 5.

    Args:
        model: with a list ``num_tokens`` of the tokens that each block's mixer sees.
    """
    counts = model.num_tokens
    return 1 - sum(counts) / (len(counts) * counts[0])


def _blocks(model: nn.Module, name: str, part: str) -> list[nn.Module]:
    container = getattr(model, name, None)
    blocks = list(container.children()) if isinstance(container, nn.Module) else []
    return [block for block in blocks if hasattr(block, part)]


def _linear(module: nn.Module | None, tokens: int = 1) -> int:
    quantised = callable(getattr(module, "weight", None))
    return tokens * linear_weights(module) if isinstance(module, nn.Linear) or quantised else 0


def _num_patches(model: nn.Module, input_size: int | Sequence[int]) -> int:
    """Patches of an input, which the model's own grid and size must agree with where it has them."""
    conv = model.patch_embed.proj
    sizes = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    n = min(len(sizes), len(conv.kernel_size))  # without batch and channels
    if n < 2:
        raise UserError(f"count_flops: input_size={input_size!r}; expected a side in pixels, or (..., height, width)")
    convolved = zip(sizes[-n:], conv.kernel_size[-n:], conv.stride[-n:])
    given = tuple((size - kernel) // stride + 1 for size, kernel, stride in convolved)
    if getattr(model, "dynamic_img_size", False):  # takes any
        return math.prod(model.patch_embed.dynamic_feat_size(sizes[-2:]))
    if hasattr(model.patch_embed, "backbone") and sizes[-2:] == tuple(model.patch_embed.img_size):
        return model.patch_embed.num_patches  # a hybrid's, behind convolutions that are not counted
    grid = tuple(getattr(model.patch_embed, "grid_size", None) or given)
    if given != grid[-n:] or len(grid) < len(conv.kernel_size):
        raise UserError(
            f"count_flops: input_size={input_size!r} gives {given} patches, but this {type(model).__name__} takes "
            f"{grid}; give the size that it was made for"
        )
    # Pixels that fill no patch leave the grid as it is.
    takes = getattr(model.patch_embed, "input_size", None) or getattr(model.patch_embed, "img_size", None)
    takes = (takes, takes) if isinstance(takes, int) else tuple(takes or ())
    if takes and sizes[-n:][-len(takes) :] != takes[-n:]:
        raise UserError(
            f"count_flops: input_size={input_size!r}, but this {type(model).__name__} takes {takes}; give the size "
            "that it was made for"
        )
    return math.prod(grid)


def _scans(model: nn.Module, layers: list[nn.Module], patches: int, convention: str) -> Counter[str]:
    parts = Counter(dict.fromkeys(_SCAN_PARTS, 0))
    config: MergeConfig | None = getattr(model, "merge_config", None)
    depth, tokens, channels = getattr(model, "depth", len(layers)), patches + 1, model.norm_f.weight.shape[0]
    for block, (asked, removed) in zip(layers, asked_and_removed(config, depth, tokens)):
        r = asked if convention == "paper" else removed or None
        if r is not None:
            layout = Tokens(tokens, 0, grid=_grid(model, patches))
            parts.update(merge_cost(config, layout, metric_width(config, block.mixer, channels), r, channels))
        tokens -= removed
        parts.update(mixer_cost(block.mixer, tokens, directions=1 if convention == "paper" else 2))
    return parts


def _grid(model: nn.Module, patches: int) -> tuple[int, int, int]:
    """Frames, rows and columns of the patches."""
    *frames, rows, columns = getattr(model.patch_embed, "grid_size", None) or (patches, 1)
    return math.prod(frames), rows, columns


def metric_width(config: MergeConfig, mixer: nn.Module, channels: int) -> int:
    if config.metric == "X":
        return channels
    return mixer.d_inner if config.metric == "delta" else mixer.d_state


def mixer_cost(mixer: nn.Module, tokens: int, directions: int) -> dict[str, int]:
    if hasattr(mixer, "x_proj"):  # a Mamba, ours or another's
        return scan_macs(mixer, tokens, directions)
    if not hasattr(mixer, "macs"):
        raise UserError(f"count_flops: {type(mixer).__name__} does not say its cost; give it macs(num_tokens)")
    return {"mixer": int(mixer.macs(tokens))}


def _attentions(model: nn.Module, blocks: list[nn.Module], patches: int) -> Counter[str]:
    parts = Counter(dict.fromkeys(_ATTENTION_PARTS, 0))
    config: MergeConfig | None = getattr(model, "merge_config", None)
    prefix = model.num_prefix_tokens
    tokens, depth = patches + prefix, getattr(model, "_merge_depth", 0) or len(blocks)
    for block, (_, removed) in zip(blocks, asked_and_removed(config, depth, tokens, prefix=prefix)):
        attention = block.attn
        projections = [getattr(attention, name, None) for name in ("qkv", "q_proj", "k_proj", "v_proj", "gate")]
        width = attention.head_dim * attention.num_heads
        parts["qkv"] += sum(_linear(module, tokens) for module in projections)
        parts["attention"] += 2 * tokens**2 * width
        parts["proj"] += _linear(attention.proj, tokens)
        if removed:
            channels = attention.proj.out_features
            metric = channels if config.metric == "X" else width // attention.num_heads
            parts.update(merge_cost(config, Tokens(tokens, prefix=prefix), metric, removed, channels))
        tokens -= removed
        parts["mlp"] += sum(_linear(module, tokens) for module in block.mlp.modules())
    return parts


def merge_cost(config: MergeConfig, tokens: Tokens, width: int, r: int, channels: int) -> dict[str, int]:
    """The rule's matching on a metric of ``width`` channels, and r tokens added to others."""
    return {"matching": config.matching.macs(tokens, width, r, config.options), "merging": r * channels}
