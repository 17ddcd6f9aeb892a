"""Every Triton kernel compiles for the GPUs we name, at the shapes of the models, without a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.warm import PYTHON

triton = pytest.importorskip("triton")
from tests.ops.triton_cases import sass  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*ROOT.glob("rmeeto/ops/*/triton_*.py")]
KERNELS = set(re.findall(r"^def ([a-z]\w*_kernel)\(", "\n".join(path.read_text() for path in SOURCES), re.MULTILINE))
BF16 = ("vim_small", "vim_base", "video_middle")
OTHERS = (
    *(f"{name}{end}" for name in BF16 for end in ("", "_evaluation")),
    *(f"vim_{size}{end}" for size in ("tiny", "small", "base") for end in ("_fp32", "_evaluation_fp32")),
    *("video_middle_fp32", "video_middle_evaluation_fp32", "vim_tiny_fp16"),
)
# Instructions, shuffles and spills of a kernel's loop over tiles, in bf16 and in fp32, counted for compute capability
# 9.0 (the table in benchmarks/README.md: the larger of two Tritons) with a margin of a few percent. Tokens that left
# their thread would be thousands of shuffles.
MOST = {
    "scan_fwd_kernel": ((775, 41, 0), (925, 41, 20)),
    "scan_bwd_kernel": ((2200, 306, 120), (2260, 320, 104)),
    "scan_state_kernel": ((530, 12, 0), (650, 12, 0)),
    "conv_fwd_kernel": ((750, 0, 0), (650, 0, 0)),
    "conv_bwd_kernel": ((1250, 0, 0), (1170, 0, 0)),
}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def compiled(capabilities: str, *settings: str) -> list[dict]:
    """What `triton_cases/offline.py` reports."""
    if not all((TOOLS / tool).exists() for tool in ("ptxas", "cuobjdump", "nvdisasm")):
        pytest.skip(f"this Triton comes without NVIDIA's tools in {TOOLS}")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [PYTHON, "-m", "tests.ops.triton_cases.offline", capabilities, *settings],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_loop(report: dict) -> None:
    """A loop over tiles is no longer than it was counted, with products and sums in one instruction as there."""
    assert report["fused"]
    assert report["registers"] <= 255
    stack = 512 if report["kernel"] == "scan_bwd_kernel" else 128 if report["setting"].endswith("fp32") else 16
    assert report["stack"] <= stack, report
    found = tuple(report["loop"][name] for name in ("instructions", "shuffles", "spills"))
    most = MOST.get(report["kernel"], [(1500, 64, 0)] * 2)[report["setting"].endswith("fp32")]
    if report["flags"].get("RANK") == 0:  # tensors of strides that the compiler does not know
        most = (1000, 41, 0)
    assert all(a <= b for a, b in zip(found, most)), f"{found}, at most {most}: {report}"


def test_every_kernel_compiles_for_hopper_and_its_loops_are_no_longer_than_counted():
    """A spilled state is read and written at every token; the backward kernel's spills are known, and bounded."""
    reports = compiled("90", "vim_tiny", "vim_tiny_evaluation")
    assert {report["kernel"] for report in reports} == KERNELS
    for report in reports:
        check_loop(report)


def test_a_loop_is_counted_without_those_inside_it():
    lines = [
        "MOV R1, R2",
        "FMUL R1, R2, R3",
        "@P0 BRA 0x10",
        "SHFL.BFLY R1, R2",
        "@!P1 BRA 0x0",
        "NOP",
        "EXIT",
    ]
    text = "\n".join(f"        /*{16 * i:04x}*/   {line} ;  /* 0x0 */" for i, line in enumerate(lines))
    assert sass.instructions(text)[1] == (16, "FMUL", "R1, R2, R3")
    counts = sass.longest_loop(text)
    assert (counts["instructions"], counts["shuffles"]) == (3, 1)
    assert sass.longest_loop("")["instructions"] == 0


def test_every_kernel_compiles_for_ampere_and_blackwell():
    found = {(report["capability"], report["kernel"]) for report in compiled("80,120", "vim_tiny")}
    assert found == {(capability, kernel) for capability in (80, 120) for kernel in KERNELS}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_the_kernels_of_every_model_compile(capability):
    for report in compiled(str(capability), *OTHERS):
        if capability == 90 and report["setting"].startswith("vim_small"):
            check_loop(report)
        assert report["stack"] <= (1024 if report["kernel"] == "scan_bwd_kernel" else 256), report


@pytest.mark.slow
def test_forty_states_compile_in_a_time_that_a_test_can_wait():
    """Padded to 64 they are four times the registers of a tile."""
    assert max(report["seconds"] for report in compiled("90", "states_40")) < 60
