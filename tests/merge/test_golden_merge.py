"""The merge operator against the recorded numbers."""

import numpy as np
import pytest
import torch

from rmeeto.merge import match, merge_source, merge_wavg
from rmeeto.merge.released import parse_choose
from tests.golden_data import Case, assert_near, names, randn

CASES = [(file, name) for file in ("merge_image.npz", "merge_video.npz") for name in names(file)]


@pytest.mark.parametrize(("file", "name"), CASES, ids=[f"{file[6:11]}-{name}" for file, name in CASES])
def test_merge_equals_the_recorded_merge(file, name):
    check_merge(Case(file, name), "cpu")


def check_merge(case, device):
    c = case.config
    x = randn(c["key"] + 1, (c["batch"], c["L"], c["x_dim"])).to(device).requires_grad_()
    size = torch.from_numpy(case["in_size"]).to(device) if c["size"] else None
    index, source, y = c["token_position"] if c["class_token"] else None, None, x
    for step in range(c["steps"]):
        metric = randn(c["key"] + 10 * step, (c["batch"], y.shape[1], c["metric_dim"])).to(device)
        plan = match(metric, c["r"], index, c["distance"], parse_choose(c.get("choose", "max")), c["order"], c["prune"])
        y, size = merge_wavg(plan, y, size, c.get("mode", "sum"))
        source, index = merge_source(plan, source), plan.class_index
        suffix = str(step + 1) if c["steps"] > 1 else ""
        assert_near(y, case[f"x{suffix}"], 1e-5, "x")
        assert_near(size, case[f"size{suffix}"], 1e-5, "size")
        if index is not None:
            assert index == int(case[f"pos{suffix}"])
    if "source" in case:
        assert np.array_equal(source.cpu().numpy(), case["source"])
    if "grad_x" in case:
        (y * randn(c["key"] + 3, tuple(y.shape)).to(device)).sum().backward()
        assert_near(x.grad, case["grad_x"], 1e-5, "grad_x")
