"""Whole models' forward passes: dense and merged, on each backend, eager, compiled and as CUDA graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import timm
import torch
from torch import Tensor, nn

import image_task.models  # noqa: F401  registers the models with timm
from benchmarks import floors, timing
from benchmarks.parity import Refused, agree
from benchmarks.peers import Kernels, Released
from rmeeto import MergeConfig
from rmeeto.layout import BySamples
from rmeeto.measure import benchmark, count_flops
from rmeeto.measure.speed import _own_code, seconds_of
from rmeeto.nn import VisionMamba
from rmeeto.ops.backend import forced

# PyTorch's operators and the tidy loop, which the operators' tests hold against the definitions
REFERENCE = "torch"
TOLERANCE, TOLERANCE_BF16 = 1e-3, 2e-2
# Two images: in bf16 merged models are compared in fp32 alone, because another rounding makes other pairs.
PARITY_IMAGES = 2
SMALLEST = {"cpu": "vim_nano_patch2_16", "cuda": "vim_tiny_patch16_224"}  # of checks
MERGING_BATCH = 64  # images from which on a GPU's share of time in merging is measured: fewer wait for the host


@dataclass(frozen=True)
class Setting:
    """How models are measured.

    Args:
        device: where.
        dtype: bf16: of the weights of forward passes, and of a training step's autocast.
        r: tokens that a merge removes; one model each.
        backends: of the operators, or ``peer``: the model as it runs on upstream's kernels.
        runs, min_seconds: timed runs, and how long each lasts.
        max_pass: seconds; batches that take longer are left out.
        kernels: of the peer, or why they are not there.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    r: tuple[int, ...] = (0,)
    backends: tuple[str, ...] = ("auto",)
    runs: int = 11
    min_seconds: float = 0.05
    max_pass: float = float("inf")
    kernels: Kernels | str | None = None

    def on(self, backend: str, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The model on a backend."""
        if backend == "peer":
            if not isinstance(self.kernels, Kernels):
                raise Refused(f"no kernels of the peer: {self.kernels}")
            return Released(model, self.kernels).train(model.training)
        return model if backend == "auto" else on(backend, model)


def on(backend: str, way: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run on a backend."""

    def call(*arguments: Any) -> Any:
        with forced(backend):
            return way(*arguments)

    return call


def create(name: str, device: torch.device, r: int = 0, **arguments: Any) -> nn.Module:
    """A registered model without trained weights, which change no time; the same each time."""
    torch.manual_seed(0)
    return timm.create_model(name, merge=MergeConfig(r=r) if r else None, **arguments).eval().to(device)


def merged(model: nn.Module, r: int) -> nn.Module:
    """The model merged, on the same weights."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, shared)
    twin.merge_config = MergeConfig(r=r) if r else None
    return twin


def in_bf16(model: nn.Module) -> nn.Module:
    """A copy with weights in bf16, but for what the scan reads in fp32."""
    twin = copy.deepcopy(model).to(torch.bfloat16)
    wide = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        if name.rsplit(".", 1)[-1] in ("A_log", "A_b_log", "D", "D_b"):
            parameter.data = wide[name].detach().clone()
    return twin


def images(model: nn.Module, batch: int, device: torch.device) -> Tensor:
    """A batch of noise."""
    size = model.pretrained_cfg["input_size"]
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(1)).to(device)


def rows(name: str, batch: int, mode: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """Rows of a model's forward pass at one batch in one mode, all ways timed in turn."""
    head = {"model": name, "batch": batch, "mode": mode}
    dense = create(name, setting.device)
    models = {(backend, r): merged(dense, r) for backend in setting.backends for r in setting.r}
    x = images(dense, batch, setting.device)
    ways, parity = {}, {}
    for (backend, r), model in models.items():
        try:
            image_s = _image_seconds(setting.on(backend, model), x[:PARITY_IMAGES])
            if image_s * batch > setting.max_pass:
                yield head | {"skipped": f"a pass would take about {image_s * batch:.0f} s"}
                return
            ways[backend, r], parity[backend, r] = _verified(setting, backend, model, x, mode, r)
        except Refused as reason:
            yield head | {"backend": backend, "r": r, "refused": str(reason)}
    if setting.dtype == torch.bfloat16:
        x = x.to(torch.bfloat16)
    ours = {key: way for key, way in ways.items() if key[0] != "peer"}
    for entered in (ways, ours):
        try:
            timed = list(_timed(models, entered, x, mode, setting)) if entered else []
            break
        except Exception as error:  # a peer can raise anything: then ours are timed alone
            if entered is ours or ours == ways:
                raise
            yield head | {"backend": "peer", "refused": f"{type(error).__name__}: {error}"[:500]}
    yield from (head | row | {"parity": parity[row["backend"], row["r"]]} for row in timed)


@torch.inference_mode()
def _image_seconds(way: Callable[[Tensor], Tensor], x: Tensor) -> float:
    way(x)
    return seconds_of(x.device, lambda: way(x)) / len(x)


def _verified(
    setting: Setting, backend: str, model: nn.Module, x: Tensor, mode: str, r: int
) -> tuple[Callable, dict[str, float]]:
    """The function to be timed, and how far it is from the eager loop's path.

    Raises:
        Refused: too far.
    """
    half = setting.dtype == torch.bfloat16
    few, parity = x[:PARITY_IMAGES], {}
    exact = setting.on(backend, model)
    timed = setting.on(backend, in_bf16(model)) if half else exact
    if backend != REFERENCE:
        expected = _logits(on(REFERENCE, model), few)
        parity["fp32"] = agree("logits", _logits(exact, few), expected, TOLERANCE)
        if half and not r:
            got = _logits(timed, few.to(setting.dtype))
            parity["bf16"] = agree("logits in bf16", got, expected, TOLERANCE_BF16)
    if mode == "by samples":
        timed = BySamples(exact)
        parity[mode] = agree("logits by samples", _logits(timed, few), _logits(exact, few), TOLERANCE)
    if not mode.startswith("compiled"):
        return timed, parity
    compiled = in_one_graph(timed)
    # The graph of a merged model in bf16 is tested in fp32, as above.
    tested, eager, limit = (compiled, timed, TOLERANCE_BF16 if half else TOLERANCE)
    if half and r:
        tested, eager, limit = in_one_graph(exact), exact, TOLERANCE
    x = x.to(setting.dtype) if half and not r else x
    parity["compiled"] = agree("compiled logits", _logits(tested, x), _logits(eager, x), limit)
    return compiled, parity


def in_one_graph(way: Callable) -> Callable:
    """The function compiled for the shapes that it is first given."""
    return torch.compile(_own_code(way), fullgraph=True, dynamic=False)


@torch.inference_mode()
def _logits(way: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return way(x).float()


def _timed(
    models: dict[tuple[str, int], nn.Module],
    ways: dict[tuple[str, int], Callable],
    x: Tensor,
    mode: str,
    setting: Setting,
) -> Iterator[dict[str, Any]]:
    """Rows of one model at one batch size in one mode, timed in turn."""
    macs = {key: count_flops(models[key], tuple(x.shape[1:]), "full").total for key in ways}
    floor = timing.Floor(x.device, setting.dtype, timing.COPY * (x.device.type == "cuda"), max(macs.values()) * len(x))
    labelled = {f"{backend}, r = {r}": ways[backend, r] for backend, r in ways}
    probes = {label: lambda _, probe=probe: probe() for label, probe in floor.probes.items()}
    how = {"runs": setting.runs, "min_seconds": setting.min_seconds, "cuda_graph": mode.endswith("graphed")}
    how["merging"] = x.device.type == "cuda" and len(x) >= MERGING_BATCH and not mode.startswith("compiled")
    found = benchmark({**labelled, **probes}, x, **how)
    for (backend, r), label in zip(ways, labelled):
        took, model = found[label], models[backend, r]
        row = {"backend": backend, "r": r, "tokens": model.num_tokens[-1], "macs": macs[backend, r]}
        row |= {**timing.times(took), "images_per_s": took.images_per_s}
        if (backend, 0) in ways:
            dense = found[f"{backend}, r = 0"]
            row["speed_up"], row["speed_up_spread"] = timing.ratio(dense.seconds, took.seconds)
            row["theory"] = macs[backend, 0] / macs[backend, r]
        if backend != "peer" and ("peer", r) in ways:
            row["over_peer"], row["over_peer_spread"] = timing.ratio(found[f"peer, r = {r}"].seconds, took.seconds)
        if x.device.type == "cuda" and isinstance(model, VisionMamba):
            floor_ms = 1e3 * floors.forward(len(x), model.num_tokens, model.embed_dim, floor.rates(found))
        else:
            floor_ms = (floor.ms(found) or 0.0) * macs[backend, r] / max(macs.values())
        row |= timing.against_floor(floor_ms, row["median_ms"])
        row |= {"memory_bytes": took.peak_memory}
        if took.merging_share is not None:
            row |= {"merging_share": took.merging_share, "merging_spread": took.merging_spread}
        if x.device.type == "cpu":
            row["memory_bytes"] = timing.peak_memory(lambda way=ways[backend, r]: _logits(way, x), x.device)
        yield row
