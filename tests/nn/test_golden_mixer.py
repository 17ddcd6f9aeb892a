"""The bidirectional mixer against the recorded numbers."""

import pytest
import torch

from rmeeto.nn import BiMamba
from tests.golden_data import Case, assert_near, fill, names, randn


@pytest.mark.parametrize("name", names("mixer.npz"))
def test_mixer_equals_the_recorded_mixer(name):
    check_mixer(Case("mixer.npz", name), "cpu", 2e-5, 1e-4)


def check_mixer(case, device, bound, gradient_bound):
    c = case.config
    mixer = fill(BiMamba(c["d_model"], c["d_state"], average=c["divide"], released_flip=True)).to(device)
    x = (randn(c["key"], (c["batch"], c["L"], c["d_model"])) * c["scale"]).to(device).requires_grad_()
    out, ssm = mixer(x, return_ssm=True)
    assert_near(out, case["out"], bound, "out")
    for side in ("B", "C", "delta"):
        assert_near(getattr(ssm, side), case[side], bound, side)
        assert not getattr(ssm, side).requires_grad
    (out * randn(c["key"] + 1, tuple(out.shape)).to(device)).sum().backward()
    assert_near(x.grad, case["grad_x"], gradient_bound, "grad_x")
    parameters = dict(mixer.named_parameters())
    recorded = [output for output in case.outputs() if output.startswith("grad/")]
    assert recorded
    for output in recorded:
        assert_near(parameters[output.removeprefix("grad/")].grad, case[output], gradient_bound, output)


@pytest.mark.parametrize("side", ["B", "C", "delta"])
def test_side_outputs_combine_the_directions_token_by_token(side):
    case = Case("mixer.npz", "vim_d32_L20")
    c = case.config
    mixer = fill(BiMamba(c["d_model"], c["d_state"]))
    _, ssm = mixer(randn(c["key"], (c["batch"], c["L"], c["d_model"])), return_ssm=True)
    backward = torch.from_numpy(case[f"{side}_bwd"]).flip(1)  # recorded in its own, reversed, token order
    assert_near(getattr(ssm, side), ((torch.from_numpy(case[f"{side}_fwd"]) + backward) / 2).numpy(), 2e-5)


def test_a_float64_mixer_does_not_pass_through_float32():
    """A change that float32 would round away reaches the output."""
    torch.manual_seed(0)
    mixer, x = BiMamba(16).double(), torch.randn(1, 9, 16, dtype=torch.float64)
    with torch.no_grad():
        before = mixer(x)
        mixer.A_log += 1e-8
        after = mixer(x)
    assert 1e-13 < (after - before).abs().max() < 1e-9
