"""What the scan's launches wait for, by Nsight Compute: python -m benchmarks ncu."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import Unit
from rmeeto.nn import BiMamba

ROOT = Path(__file__).resolve().parents[1]
TOOLKIT = "/usr/local/cuda/bin/ncu"
BATCH, TOKENS, WIDTH = 128, 197, 384  # of Vim-S
METRICS = {
    "gpu__time_duration.sum": "ns",
    "sm__inst_executed.avg.per_cycle_active": "instructions a cycle",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy, %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "of the multiprocessors' peak, %",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "of the memory's peak, %",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "stalled on global memory",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "stalled at barriers",
    "smsp__average_warps_issue_stalled_math_pipe_throttle_per_issue_active.ratio": "stalled on arithmetic",
    "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio": "stalled on shared memory",
}


def units(device: torch.device) -> Iterator[Unit]:
    """One: the scan of evaluation, of training, and its backward pass."""
    yield Unit("scan", lambda: rows(device))


def rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """A row a launch and metric; or why there is none."""
    tool = shutil.which("ncu") or (TOOLKIT if Path(TOOLKIT).exists() else None)
    if device.type != "cuda" or tool is None:
        yield {"skipped": "there is no GPU" if device.type != "cuda" else "there is no ncu"}
        return
    command = [tool, "--csv", "--kernel-name", "regex:scan_(fwd|bwd)_kernel", "--metrics", ",".join(METRICS)]
    command += [sys.executable, "-m", "benchmarks.ncu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-1500:]
    yield from parsed(done.stdout)


def parsed(text: str) -> Iterator[dict[str, Any]]:
    """The rows of what ncu prints, which begins with lines of its own."""
    table = text[text.index('"ID"') :]
    for line in csv.DictReader(io.StringIO(table)):
        value = float(line["Metric Value"].replace(",", ""))
        yield {
            "launch": f"{line['ID']}: {line['Kernel Name']}",
            "what": METRICS.get(line["Metric Name"], line["Metric Name"]),
            "value": value,
        }


def launches() -> None:
    """What ncu watches: a mixer of Vim-S without gradients, then a training pass."""
    mixer = BiMamba(WIDTH).cuda()
    x = torch.randn(BATCH, TOKENS, WIDTH, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        with torch.no_grad():
            mixer(x)
        out = mixer(x)
    out.float().square().mean().backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    launches()
