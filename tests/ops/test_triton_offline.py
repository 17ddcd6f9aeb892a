"""Every Triton kernel compiles for the GPUs we name, at the shapes of the models, without a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.warm import PYTHON

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*ROOT.glob("rmeeto/ops/*/triton_*.py")]
KERNELS = set(
    re.findall(r"^def ([a-z]\w*_kernel)\(", "\n".join(path.read_text() for path in SOURCES), re.MULTILINE)
)
OTHERS = ("vim_tiny_evaluation", "vim_small", "vim_base", "vim_tiny_fp32", "vim_tiny_fp16", "video_middle")


def compiled(capability: int, *settings: str) -> list[dict]:
    """What `triton_cases/offline.py` reports."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [PYTHON, "-m", "tests.ops.triton_cases.offline", str(capability), *settings],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_for_hopper_and_keeps_its_state_in_registers():
    """A spilled state is read and written at every token; the backward kernel's spills are known, and bounded."""
    reports = compiled(90, "vim_tiny", "vim_tiny_evaluation")
    assert {report["kernel"] for report in reports} == KERNELS
    for report in reports:
        assert report["registers"] <= 255
        assert report["stack"] <= (512 if report["kernel"] == "scan_bwd_kernel" else 0), report


@pytest.mark.parametrize("capability", [80, 120])
def test_every_kernel_compiles_for_ampere_and_blackwell(capability):
    assert {report["kernel"] for report in compiled(capability, "vim_tiny", "vim_tiny_evaluation")} == KERNELS


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_the_kernels_of_every_model_compile(capability):
    for report in compiled(capability, *OTHERS):
        assert report["stack"] <= (1024 if report["kernel"] == "scan_bwd_kernel" else 256), report
