"""What is kept for the backward pass, counted without a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import memory  # noqa: E402


def test_a_long_clip_keeps_an_eighth_of_the_states():
    """Two directions, D = 1152, N = 16, in bf16: by hand."""
    often, shipped = memory.rows("videomamba_video_middle", 1569, torch.bfloat16)
    assert (often["state_every"], shipped["state_every"]) == (8, 64)
    assert often["states_MB"] * 1e6 == 2 * 197 * 1152 * 16 * 2
    assert shipped["states_MB"] * 1e6 == 2 * 25 * 1152 * 16 * 2
    saved = (often["model_GB"] - shipped["model_GB"]) / 32 / 64 * 1e3
    assert saved == pytest.approx(often["states_MB"] - shipped["states_MB"])
    assert often["block_MB"] > often["states_MB"] + 4 * 1569 * 1152 * 2 / 1e6, "u twice, z, the ungated sum"
