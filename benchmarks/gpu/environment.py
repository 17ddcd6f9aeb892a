"""Ceilings of the device: what a large copy and a large matrix product reach, measured once and used for all floors."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.setting import Setting


def run(setting: Setting) -> dict[str, Any]:
    """Bytes and operations a second, and exponentials by the clock."""
    device = setting.device
    size, side = (1 << 16, 64) if setting.dry else (1 << 30, 8192)
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = setting.time({"copy": lambda: target.copy_(source), "product": lambda: a @ b})
    rates = {
        "bytes": 2 * source.numel() * source.element_size() / seconds["copy"],
        "flops": 2 * side**3 / seconds["product"],
        "exps": _exps(setting),
    }
    return {"rates": rates, "seconds": seconds}


def _exps(setting: Setting) -> float:
    """16 special functions a clock and multiprocessor (compute capability 8.0 to 12.0)."""
    if setting.dry:
        return 1e9
    properties = torch.cuda.get_device_properties(0)
    kilohertz = getattr(properties, "clock_rate", None) or 1_755_000
    return properties.multi_processor_count * 16 * kilohertz * 1e3
