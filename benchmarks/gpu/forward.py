"""Forward passes: dense and merged, three batches, eager, compiled and as CUDA graphs; ours and upstream's kernels."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import torch

from benchmarks.gpu import floors
from benchmarks.gpu.peers import Released
from benchmarks.gpu.setting import REMOVED, Setting, in_bf16
from rmeeto.measure import benchmark


def run(setting: Setting, name: str, compiled: bool = False) -> dict[str, Any]:
    """Rows of (batch, mode, model): milliseconds, images/s, memory, share of merging, share of the fused floor.

    All models of a batch and mode run interleaved in one process, with bf16 weights. Eager passes wait for the host at
    small sizes: what the kernels are worth is seen in the graphed ones.

    Args:
        compiled: our models through torch.compile, at the largest batch: half a minute each before the first pass.
    """
    kernels = setting.kernels()
    models = {f"ours r={r}": in_bf16(setting.model(name, r)).eval() for r in REMOVED}
    peers = {}
    if not isinstance(kernels, str):
        peers = {f"upstream r={r}": Released(models[f"ours r={r}"], kernels).eval() for r in REMOVED}
    rows = []
    for batch in setting.batches[-1:] if compiled else setting.batches:
        images = setting.images(batch, torch.bfloat16)
        for mode, options in modes(setting, compiled).items():
            merging = batch == setting.batches[-1] and not compiled
            timings = {}
            for entered in [models] if compiled or not peers else [models | peers, models]:
                try:
                    timings = benchmark(entered, images, runs=5, merging=merging, **options)
                    break
                except (
                    Exception
                ) as error:  # of a peer: ours are timed alone; in any case the other modes go on
                    message = f"{type(error).__name__}: {error}"[:500]
                    rows.append({"batch": batch, "mode": mode, "models": len(entered), "error": message})
            for label, timing in timings.items():
                own = models[f"ours r={label.split('=')[1]}"]
                floor = floors.forward(batch, own.num_tokens, setting.models[name], setting.rates())
                row = {"batch": batch, "mode": mode, "model": label, **timing.to_dict()}
                row |= {"floor_ms": floor * 1e3, "over_floor": timing.median_s / floor}
                rows.append({key: value for key, value in row.items() if key != "runs_ms"})
        gc.collect()
    return {
        "upstream": kernels if isinstance(kernels, str) else kernels.name,
        "rows": rows,
        "ratios": ratios(rows),
    }


def modes(setting: Setting, compiled: bool) -> dict[str, dict[str, Any]]:
    """How passes are run."""
    quick = {"min_seconds": 0.0 if setting.dry else 0.02}
    if compiled:
        return {
            mode: {**quick, "compile": True, "cuda_graph": graph}
            for mode, graph in (("compiled", False), ("compiled and graphed", True))
        }
    return {"eager": quick} if setting.dry else {"eager": quick, "graphed": {**quick, "cuda_graph": True}}


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ours over upstream at equal r, and merged over dense, at each batch and mode."""
    times = {(row["batch"], row["mode"], row["model"]): row["latency_ms"] for row in rows if "model" in row}
    found = {}
    for (batch, mode, label), value in times.items():
        who, r = label.split(" r=")
        other = times.get((batch, mode, f"upstream r={r}"))
        if who == "ours" and other is not None:
            found[f"batch {batch}, {mode}, r={r}: upstream / ours"] = other / value
        dense = times.get((batch, mode, f"{who} r=0"))
        if r != "0" and dense is not None:
            found[f"batch {batch}, {mode}, {who}: dense / r={r}"] = dense / value
    return found


tiny, small, base = (partial(run, name=f"vim_{size}") for size in ("tiny", "small", "base"))
compiled_tiny, compiled_small, compiled_base = (
    partial(run, name=f"vim_{size}", compiled=True) for size in ("tiny", "small", "base")
)
nano = partial(run, name="vim_nano")
