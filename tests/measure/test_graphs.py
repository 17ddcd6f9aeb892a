"""CUDA graphs: one error without a GPU, the same numbers with one."""

from __future__ import annotations

import pytest
import timm
import torch

import image_task.models  # noqa: F401  (registers the models)
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.measure import graphed


def merged_model():
    return timm.create_model("vim_nano_patch2_16", merge=MergeConfig(r=4)).eval()


def test_without_cuda_one_error_says_what_to_do():
    with pytest.raises(UserError, match="need a CUDA device; this batch is on cpu"):
        graphed(merged_model(), torch.zeros(2, 3, 16, 16))


@pytest.mark.gpu
def test_a_graph_gives_the_numbers_of_the_model():
    model, batches = merged_model().cuda(), torch.randn(3, 4, 3, 16, 16, device="cuda")
    fast = graphed(model, batches[0])
    with torch.inference_mode():
        for batch in batches:
            assert torch.equal(fast(batch), model(batch))
        model.head.bias += 1
        assert torch.equal(fast(batch), model(batch))
    with pytest.raises(UserError, match="captured for"):
        fast(batches[0][:2])
    with pytest.raises(UserError, match="training mode"):
        graphed(model.train(), batches[0])
