"""The Triton kernels against the definitions: on the GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

CASES = Path(__file__).parent / "triton_cases"


def run_cases(marker: str) -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when kernels are defined."""
    environment = dict(os.environ) if torch.cuda.is_available() else os.environ | {"TRITON_INTERPRET": "1"}
    files = sorted(str(path) for path in CASES.glob("*_cases.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marker, *files]
    done = subprocess.run(command, env=environment, cwd=CASES.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_kernels_match_the_definitions():
    run_cases("not slow")


@pytest.mark.slow
def test_kernels_match_the_definitions_in_more_cases():
    run_cases("slow")
