"""What the counters of the released code print, so that a number of theirs can be traced to its cause.

`count_flops` gives what a model costs. The two counters behind the authors' tables agree with its convention ``paper``
but for the differences that are named here, one by one.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from rmeeto.errors import UserError
from rmeeto.measure.flops import count_flops, metric_width, mixer_cost
from rmeeto.merge import MergeConfig, merging_blocks
from rmeeto.merge.schedule import removals_asked


class ReleasedCounters(NamedTuple):
    """Multiply-accumulates of one sample, as the released code counts them.

    Attributes:
        analytic: the counter that follows the settings alone.
        analytic_layers: the same without the cost of merging.
        hook: the counter that watches a forward pass; None where it crashes (metric B or C).
    """

    analytic: int
    analytic_layers: int
    hook: int | None


def released_counters(model: nn.Module, input_size: int | tuple[int, ...]) -> ReleasedCounters:
    """The figures that the released code's two counters give for a Vision Mamba of ours.

    The analytic counter embeds one patch too many, knows neither the clamp of r nor a forced last merge (so the
    tokens of a large r go below zero), and for VideoMamba no odd blocks. The hook counter sees the real tokens, but
    counts each merge by metric delta twice.

    Args:
        model: a Vision Mamba, dense or merged by one r.
        input_size: as for `count_flops`.

    Raises:
        UserError: another kind of model, a setting that the released code does not have, or a wrong size.

    Source: R-MeeTo, arXiv 2412.12496, and the figures recorded from its released code.
    """
    config: MergeConfig | None = getattr(model, "merge_config", None)
    if not hasattr(model, "layers") or (config and not (isinstance(config.r, int) and config.matching.name == "exact")):
        raise UserError(
            f"released_counters: got a {type(model).__name__} with {config}; the released code counts a Vision Mamba "
            "with one r for all merges and the exact rule. Use count_flops"
        )
    counted = count_flops(model, input_size)
    return ReleasedCounters(*_analytic(model, config, counted.parts), _hook(config, counted))


def _analytic(model: nn.Module, config: MergeConfig | None, parts: dict[str, int]) -> tuple[int, int]:
    mixers = [layer.mixer for layer in model.layers]
    channels = mixers[0].in_proj.in_features
    one_patch = model.patch_embed.proj.weight.numel()
    tokens = parts["patch"] // one_patch + 1
    layers, merges = tokens * one_patch + parts["head"], 0
    # Vim averages its directions, VideoMamba does not.
    odd = config is not None and config.odd and mixers[0].average
    merging = merging_blocks(len(mixers), config.interval, odd) if config else []
    asked = dict(zip(merging, removals_asked(config, len(merging)))) if config else {}
    for i, mixer in enumerate(mixers):
        if i in asked:
            width = metric_width(config, mixer, channels)
            merges += 6 * tokens * width + width * tokens**2 // 2 + asked[i] * channels
            tokens -= asked[i]
        layers += sum(mixer_cost(mixer, tokens, directions=1).values())
    return layers + merges, layers


def _hook(config: MergeConfig | None, counted: tuple[int, dict[str, int]]) -> int | None:
    total, parts = counted
    if config is None or config.metric == "X":
        return total
    return total + parts["matching"] + parts["merging"] if config.metric == "delta" else None
