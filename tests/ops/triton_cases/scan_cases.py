"""The selective scan's kernels against the definition."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.nn import functional as F

from rmeeto.ops.selective_scan import Direction, triton_scan
from rmeeto.ops.selective_scan.naive import naive_bidirectional_scan, naive_selective_scan
from rmeeto.ops.triton_math import exp2_polynomial
from tests.helpers import assert_close_rms, rms_ratio
from tests.ops.triton_cases.common import FULL, QUICK, compare, large, randn, slow
from tests.ops.triton_cases.conftest import INTERPRETED

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

SIZES = [  # B, L, D, N, R
    (2, 13, 20, 16, 5),
    (1, 1, 3, 16, 1),
    slow((3, 2, 40, 16, 12)),
    slow((1, 63, 20, 16, 3)),
    slow((2, 9, 17, 5, 4)),
    slow((1, 10, 16, 40, 17)),
    *(large((b, length, 200, 16, 12)) for b in (1, 3) for length in (1, 2, 63, 197, 500, 1569)),
    large((8, 197, 1536, 16, 48)),
]


def direction(b, length, d, n, r, device, dtype, seed):
    """A direction's tensors; features, B and C are slices of one tensor, as x_proj's output gives them."""
    projected = randn(b, length, r + 2 * n, seed=seed, device=device, dtype=dtype)
    features, B, C = projected.split([r, n, n], dim=-1)
    names = ("u", "features", "A", "B", "C", "D", "bias", "weight")
    tensors = (
        randn(b, length, d, seed=seed + 1, device=device, dtype=dtype),
        features,
        -torch.exp(randn(d, n, seed=seed + 3, device=device)),
        B,
        C,
        randn(d, seed=seed + 4, device=device),
        randn(d, seed=seed + 5, device=device) - 2,
        randn(d, r, seed=seed + 2, device=device) / r**0.5,
    )
    return dict(zip(names, tensors))


def gate(b, length, d, device, dtype):
    """z as the second half of in_proj's output."""
    return randn(b, length, 2 * d, seed=60, device=device, dtype=dtype)[..., d:]


def both(sizes, device, dtype):
    forward, backward = (direction(*sizes, device, dtype, seed) for seed in (10, 20))
    b, length, d, _, _ = sizes
    return forward | {f"{k}_b": v for k, v in backward.items()} | {"z": gate(b, length, d, device, dtype)}


def run(function, average=True, projected=True, log_A=False):
    """Call on flat tensors; ``projected``: outside of the function, features and weight to step sizes."""

    def arguments(u, features, A, B, C, D, bias, weight):
        if not projected:
            return Direction(u, features, A, B, C, D, bias, weight, log_A)
        return Direction(u, F.linear(features, weight.to(features.dtype)), A, B, C, D, bias, log_A=log_A)

    def call(*tensors):
        return function(arguments(*tensors[:8]), arguments(*tensors[8:16]), tensors[16], average)

    return call


@pytest.mark.parametrize("sizes", SIZES)
def test_both_directions_with_the_step_size_projected_inside(sizes, device):
    compare(
        run(triton_scan.bidirectional_scan, projected=False),
        run(naive_bidirectional_scan),
        both(sizes, device, torch.float32),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, slow(torch.float16)])
@pytest.mark.parametrize("sizes", [(1, 13, 20, 16, 5), large((3, 197, 200, 16, 12))])
def test_half_precision_storage(sizes, dtype, device):
    compare(
        run(triton_scan.bidirectional_scan, projected=False),
        run(naive_bidirectional_scan),
        both(sizes, device, dtype),
    )


@pytest.mark.parametrize(
    "tiles",
    [
        ((4, 1, 32), (8, 2, 8)),
        slow(((8, 1, 16), (4, 4, 8))),
        slow(((8, 2, 8), (4, 4, 4))),
        slow(((4, 1, 16), (8, 1, 16))),
    ],
)
def test_tiles_of_any_shape_understand_each_other(tiles, device, monkeypatch):
    """The backward pass reads states that the forward pass has stored."""
    monkeypatch.setattr(triton_scan, "FORWARD_TILE", triton_scan.Tile(*tiles[0]))
    monkeypatch.setattr(triton_scan, "BACKWARD_TILE", triton_scan.Tile(*tiles[1]))
    tensors = both((1, 13, 40, 16, 5), device, torch.float32)
    compare(run(triton_scan.bidirectional_scan, projected=False), run(naive_bidirectional_scan), tensors)


@pytest.mark.parametrize(("ahead", "stages"), [(False, 2), (True, 1), pytest.param(True, 2, marks=pytest.mark.slow)])
def test_loads_ahead_change_nothing(ahead, stages, device, monkeypatch):
    for name, value in {"AHEAD": ahead, "FORWARD_STAGES": stages, "BACKWARD_STAGES": stages}.items():
        monkeypatch.setattr(triton_scan, name, value)
    tensors = both((1, 21, 20, 16, 5), device, torch.float32)
    compare(run(triton_scan.bidirectional_scan, projected=False), run(naive_bidirectional_scan), tensors)


@pytest.mark.parametrize("length", [large(1569), 27])
@pytest.mark.parametrize("split", [False, True])
def test_states_that_are_stored_far_apart(split, length, device, monkeypatch):
    """A long sequence keeps few states; the others are scanned again, in each chunk of one that is split."""
    monkeypatch.setattr(triton_scan, "LONG", 20)
    monkeypatch.setattr(triton_scan, "STORED_LONG", 16)
    if split:
        monkeypatch.setattr(triton_scan, "num_chunks", lambda programs, pieces, warps: min(pieces, 3))
    tensors = both((1, length, 20, 16, 5), device, torch.float32)
    compare(run(triton_scan.bidirectional_scan, projected=False), run(naive_bidirectional_scan), tensors)


@pytest.mark.parametrize("absent", [(), slow(("z",))])
@pytest.mark.parametrize("reverse", [slow(False), True])
def test_training_on_a_sequence_split_into_chunks(reverse, absent, device, monkeypatch):
    monkeypatch.setattr(triton_scan, "num_chunks", lambda programs, pieces, warps: min(pieces, 3))
    tensors = direction(1, 29, 20, 16, 5, device, torch.float32, 10)
    tensors["delta"] = F.linear(tensors.pop("features"), tensors.pop("weight"))
    tensors |= {"z": gate(1, 29, 20, device, torch.float32)} | dict.fromkeys(absent)
    order = ("u", "delta", "A", "B", "C", "D", "z", "bias")
    compare(
        lambda *t: triton_scan.selective_scan(*t, True, reverse),
        lambda *t: naive_selective_scan(*t, True, reverse),
        {name: tensors[name] for name in order},
    )


@pytest.mark.parametrize("average", [slow(False), True])
def test_both_directions_with_the_step_size_given(average, device):
    tensors = both((1, 10, 20, 16, 5), device, torch.float32)
    compare(run(triton_scan.bidirectional_scan, average), run(naive_bidirectional_scan, average), tensors)


@pytest.mark.parametrize("sizes", [(1, 13, 20, 16, 5), slow((1, 9, 17, 5, 4)), large((8, 197, 768, 16, 24))])
def test_A_given_as_its_logarithm(sizes, device, monkeypatch):
    tensors = both(sizes, device, torch.float32)
    tensors |= {name: (-tensors[name]).log() for name in ("A", "A_b")}

    call = run(triton_scan.bidirectional_scan, projected=False, log_A=True)
    expected = run(naive_bidirectional_scan, log_A=True)
    compare(call, expected, tensors)
    # The kernel of the chunks' states reads A too.
    monkeypatch.setattr(triton_scan, "num_chunks", lambda *_: 2)
    with torch.no_grad():
        assert_close_rms(call(*tensors.values()), expected(*tensors.values()))


@pytest.mark.parametrize("reverse", [slow(False), True])
@pytest.mark.parametrize("absent", [(), slow(("z",)), slow(("D",)), ("D", "z", "bias")])
def test_one_direction(reverse, absent, device):
    tensors = direction(2, 11, 20, 16, 5, device, torch.float32, 10)
    tensors["delta"] = F.linear(tensors.pop("features"), tensors.pop("weight"))
    tensors |= {"z": gate(2, 11, 20, device, torch.float32)} | dict.fromkeys(absent)
    order = ("u", "delta", "A", "B", "C", "D", "z", "bias")
    compare(
        lambda *t: triton_scan.selective_scan(*t, True, reverse),
        lambda *t: naive_selective_scan(*t, True, reverse),
        {name: tensors[name] for name in order},
    )


def test_channel_major_tensors_and_no_softplus(device):
    tensors = direction(2, 9, 20, 16, 5, device, torch.float32, 10)
    u, delta = (randn(2, 20, 9, seed=i, device=device).transpose(1, 2) for i in (70, 71))
    B, C = (tensors[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("B", "C"))
    compare(
        lambda *t: triton_scan.selective_scan(*t, None, None, False),
        lambda *t: naive_selective_scan(*t, None, None, False),
        {"u": u, "delta": delta * 0.1, "A": tensors["A"], "B": B, "C": C, "D": tensors["D"]},
    )


@pytest.mark.parametrize("length", [40, large(197), large(1569)])
def test_a_sequence_split_into_chunks(length, device, monkeypatch):
    tensors = both((1, length, 20, 16, 5), device, torch.float32)
    expected = run(naive_bidirectional_scan)(*(t.double() for t in tensors.values()))
    monkeypatch.setattr(triton_scan, "num_sms", lambda device: 16)
    assert triton_scan._chunks(2, length, 8, 8, device)[1] > 1
    with torch.no_grad():
        got = run(triton_scan.bidirectional_scan, projected=False)(*tensors.values())
    assert rms_ratio(got, expected) < 1e-5


@pytest.mark.parametrize(
    ("groups", "programs", "span"), [(48, 256, 6), (24, 256, 6), (96, 256, 8), (2, 1, 1), (1, 9, 1)]
)
def test_the_span_leaves_few_places_empty(groups, programs, span):
    """Of Vim-S, Ti and B at batch 128, both directions, on 132 multiprocessors of 8 places."""
    assert triton_scan.span_of(groups, programs, 1056) == span


def test_evaluation_and_training_have_the_same_output(device):
    tensors = both((1, 21, 20, 16, 5), device, torch.bfloat16)
    call = run(triton_scan.bidirectional_scan, projected=False)
    trained = call(*(t.requires_grad_() for t in tensors.values()))
    with torch.no_grad():
        evaluated = call(*tensors.values())
    if INTERPRETED:
        assert torch.equal(evaluated, trained)
    else:  # two compilations, which may contract products and sums otherwise: roundings of bf16
        assert_close_rms(evaluated, trained, tolerance=1e-3)


def test_a_program_that_takes_several_groups_of_channels(device, monkeypatch):
    monkeypatch.setattr(triton_scan, "span_of", lambda *_: 2)  # the last program has one group
    compare(
        run(triton_scan.bidirectional_scan, projected=False),
        run(naive_bidirectional_scan),
        both((1, 5, 40, 16, 5), device, torch.float32),
    )


def test_states_that_are_forgotten_and_states_that_never_are(device):
    tensors = both((1, 13, 20, 16, 5), device, torch.float32)
    tensors["bias"], tensors["bias_b"] = tensors["bias"] + 30, tensors["bias_b"] - 12
    compare(run(triton_scan.bidirectional_scan, projected=False), run(naive_bidirectional_scan), tensors)


def test_part_of_the_exponentials_as_polynomials(device, monkeypatch):
    monkeypatch.setattr(triton_scan, "POLYNOMIAL", 2)
    tensors = both((1, 13, 20, 16, 5), device, torch.float32)
    expected = run(naive_bidirectional_scan)(*(t.double() for t in tensors.values()))
    with torch.no_grad():
        got = run(triton_scan.bidirectional_scan, projected=False)(*tensors.values())
    assert rms_ratio(got, expected) < 1e-6


@triton.jit
def exp2_kernel(x, y, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + index, exp2_polynomial(tl.load(x + index)))


def test_the_polynomial_is_as_good_as_fp32(device):
    x = torch.cat([-torch.logspace(-6, 2.09, 4000), torch.zeros(96)]).to(device)
    y = torch.zeros_like(x)
    exp2_kernel[(4,)](x, y, BLOCK=1024)
    assert ((y.double() / torch.exp2(x.double()) - 1).abs() < 3e-7).all()
    assert y[-1] == 1


@pytest.mark.parametrize("checks", [QUICK, slow(FULL)])
def test_registration(checks, device):
    inputs = both((1, 3, 32, 16, 5), device, torch.float32).values()  # no padded, unwritten channels
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    opcheck(torch.ops.rmeeto.triton_scan, (*inputs, True, False, True, True, True), test_utils=checks)


def test_a_compiled_function_has_no_graph_break(device):
    tensors = both((1, 3, 20, 16, 5), device, torch.float32)
    call = run(triton_scan.bidirectional_scan, projected=False)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    compare(compiled, call, tensors, 1e-6)
