"""Long inputs: milliseconds and peak memory of a forward pass, dense and merged at quadratic and at linear cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import timm
import torch

import video_task.models  # noqa: F401  (registers the models)
from benchmarks import timing
from benchmarks.results import Unit
from rmeeto import MergeConfig
from rmeeto.measure import benchmark

# A model, what makes its input long, r of each second block as a share of the tokens, the window.
CASES = (
    ("vim_tiny_patch16_224", {"img_size": 1024}, (1, 7, 7)),
    ("videomamba_video_tiny_patch16_224", {"num_frames": 64}, (2, 3, 3)),
)
QUICK = (("vim_nano_patch2_16", {"img_size": 32}, (1, 3, 3)),)
SHARE = 0.05


def units(device: torch.device, runs: int, quick: bool = False) -> Iterator[Unit]:
    """A unit for each model."""
    for name, arguments, window in QUICK if quick else CASES:
        yield Unit(name, partial(rows, name, arguments, window, device, runs), "inputs")


def rows(
    name: str, arguments: dict[str, int], window: tuple[int, int, int], device: torch.device, runs: int
) -> Iterator[dict[str, Any]]:
    """The dense model, and each rule at the same number of tokens that go."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval().to(device)
    merge = MergeConfig(r=SHARE)
    configs = {
        "dense": None,
        "exact": merge,
        f"window {window}": dataclasses.replace(merge, window=window),
        "adjacent": dataclasses.replace(merge, rule="adjacent"),
    }
    x = torch.randn(1, *model.input_size, device=device)

    @torch.inference_mode()
    def run(config: MergeConfig | None, x: torch.Tensor) -> torch.Tensor:
        model.merge_config = config
        return model(x)

    ways = {rule: partial(run, config) for rule, config in configs.items()}
    memory = {rule: timing.peak_memory(partial(way, x), device) for rule, way in ways.items()}
    timed = benchmark(ways, x, runs=runs, warmup=1)
    for rule, config in configs.items():
        model.merge_config = config
        faster, spread = timing.ratio(timed["dense"].seconds, timed[rule].seconds)
        yield {
            "what": f"{name}, {'x'.join(map(str, model.input_size[1:]))}",
            "way": rule,
            "tokens": f"{model.num_tokens[0]} to {model.num_tokens[-1]}",
            "ms": 1e3 * timed[rule].median_s,
            "peak_MB": None if memory[rule] is None else round(memory[rule] / 1e6),
            "speed_up": faster,
            "IQR": spread,
        }
