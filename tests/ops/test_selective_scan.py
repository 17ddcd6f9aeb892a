"""The selective scan: every backend against the definition, forward and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from rmeeto.ops import Direction, bidirectional_scan, selective_scan
from rmeeto.ops.selective_scan import BIDIRECTIONAL, SCAN
from rmeeto.ops.selective_scan.direction import flatten
from rmeeto.ops.selective_scan.naive import naive_bidirectional_scan, naive_selective_scan
from tests.helpers import TOLERANCE, assert_close_rms

BACKENDS = [name for name, state in SCAN.explain("cpu") if state in ("chosen", "available") and name != "naive"]
NAMES = Direction._fields[:7]
WIDE = (torch.float32, torch.float64)

pytestmark = pytest.mark.usefixtures("nan_filled")


def direction(batch, length, channels, states, dtype=torch.float32, seed=0):
    """u, delta, A, B, C, D, delta_bias; B and C are slices of one tensor, as x_proj's output gives them."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    projected = randn(batch, length, 3 + 2 * states).to(dtype)
    u, delta = randn(batch, length, channels).to(dtype), randn(batch, length, channels).mul(0.5).to(dtype)
    A = -torch.exp(randn(channels, states) * 0.5 + 1)
    B, C = projected[..., 3 : 3 + states], projected[..., 3 + states :]
    return [u, delta, A, B, C, randn(channels), randn(channels) - 2]


def run_both(function, tensors, average=False):
    """A function of two directions and a gate on the flat tensors of `both`."""
    return function(Direction(*tensors[:7]), Direction(*tensors[7:14]), tensors[14], average)


def gate(batch, length, channels, dtype=torch.float32):
    """z as the second half of in_proj's output."""
    generator = torch.Generator().manual_seed(9)
    return torch.randn(batch, length, 2 * channels, generator=generator).to(dtype)[..., channels:]


def leaves(tensors, dtype=None):
    """Leaves that need gradients, strides kept."""
    return [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]


def compare(function, reference, tensors, names, tolerance=None):
    """Output and gradients of every tensor against the reference in float64."""
    mine, exact = leaves(tensors), leaves(tensors, torch.float64)
    got, expected = function(*mine), reference(*exact)
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    got.backward(seed.to(got.dtype))
    expected.backward(seed.to(got.dtype).double())
    limit = TOLERANCE[got.dtype] if tolerance is None else tolerance
    assert got.dtype == tensors[0].dtype
    assert_close_rms(got, expected, "output", limit)
    for name, a, b in zip(names, mine, exact, strict=True):
        if a is not None:
            gradient = torch.zeros_like(a) if a.grad is None else a.grad  # of A when there is a single token
            assert gradient.dtype == a.dtype
            assert_close_rms(gradient, b.grad, f"gradient of {name}", limit)


def check_both(backend, batch, length, channels, states, dtype=torch.float32, average=True):
    tensors = direction(batch, length, channels, states, dtype) + direction(batch, length, channels, states, dtype, 1)
    tensors.append(gate(batch, length, channels, dtype))
    names = [*NAMES, *(f"{name}_b" for name in NAMES), "z"]
    run = BIDIRECTIONAL.implementation("cpu", backend)
    compare(
        lambda *t: run_both(run, t, average),
        lambda *t: run_both(naive_bidirectional_scan, t, average),
        tensors,
        names,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 63, 197])
def test_both_directions_match_the_definition(backend, batch, length):
    check_both(backend, batch, length, channels=20, states=16)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [500, pytest.param(1569, marks=pytest.mark.slow)])
def test_long_sequences_match_the_definition(backend, length):
    check_both(backend, 1, length, channels=17, states=4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "length", "channels"), [(1, 63, 20), (3, 35, 49)])
def test_bf16_storage_matches_the_definition(backend, batch, length, channels):
    check_both(backend, batch, length, channels, states=16, dtype=torch.bfloat16, average=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("states", [1, 5, 8, 17, 40])
def test_any_number_of_states(backend, states):
    check_both(backend, 2, 18, channels=7, states=states)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [65, 130])
def test_more_samples_than_tasks(backend, batch):
    check_both(backend, batch, 3, channels=33, states=2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_one_direction_matches_the_definition(backend, reverse, absent):
    tensors = dict(zip(NAMES, direction(2, 37, 20, 16), strict=True)) | {"z": gate(2, 37, 20)}
    tensors |= dict.fromkeys(absent)
    order = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    run = SCAN.implementation("cpu", backend)
    compare(
        lambda *t: run(*t, True, reverse),
        lambda *t: naive_selective_scan(*t, True, reverse),
        [tensors[name] for name in order],
        order,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_softplus_and_with_steps_of_both_signs(backend):
    u, delta, A, B, C, D, _ = direction(2, 21, 10, 6)
    run = SCAN.implementation("cpu", backend)
    compare(
        lambda *t: run(*t, None, None, False),
        lambda *t: naive_selective_scan(*t, None, None, False),
        [u, delta * 0.1, A, B, C, D],
        ("u", "delta", "A", "B", "C", "D"),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_so_large_that_the_state_is_forgotten(backend):
    u, delta, A, B, C, D, bias = direction(1, 20, 10, 16)
    delta[:, ::3] = 300.0
    run = SCAN.implementation("cpu", backend)
    names = ("u", "delta", "A", "B", "C", "D")
    compare(lambda *t: run(*t), lambda *t: naive_selective_scan(*t), [u, delta, A, B, C, D], names)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_steps_keep_their_relative_accuracy(backend):
    u, _, A, B, C, D, _ = direction(1, 5, 16, 16)
    delta = torch.linspace(-60, 20, 16).expand(1, 5, 16).contiguous()
    out = SCAN.implementation("cpu", backend)(u, delta, torch.zeros_like(A), B, C)
    exact = naive_selective_scan(*(t.double() for t in (u, delta, torch.zeros_like(A), B, C)))
    torch.testing.assert_close(out.double(), exact, rtol=2e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", NAMES)
def test_nan_is_not_hidden(backend, where):
    tensors = direction(1, 5, 16, 16)
    tensors[NAMES.index(where)].select(-1, 0).fill_(float("nan"))
    u, delta, A, B, C, D, bias = tensors
    out = SCAN.implementation("cpu", backend)(u, delta, A, B, C, D, None, bias)
    assert out.isnan().any()


@pytest.mark.parametrize("backend", [*BACKENDS, "naive"])
def test_reverse_is_flipping_by_hand(backend):
    u, delta, A, B, C, D, bias = direction(2, 19, 12, 16)
    z = gate(2, 19, 12)
    run = SCAN.implementation("cpu", backend)
    flipped = run(u.flip(1), delta.flip(1), A, B.flip(1), C.flip(1), D, z.flip(1), bias).flip(1)
    torch.testing.assert_close(run(u, delta, A, B, C, D, z, bias, True, True), flipped, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", [*BACKENDS, "naive"])
def test_channel_major_face(backend):
    u, delta, A, B, C, D, bias = direction(2, 19, 12, 16)
    z = gate(2, 19, 12)
    expected = naive_selective_scan(u, delta, A, B, C, D, z, bias, True, True).transpose(1, 2)
    major = [t.transpose(1, 2).contiguous() for t in (u, delta, B, C, z)]
    out = selective_scan(major[0], major[1], A, major[2], major[3], D, major[4], bias, reverse=True, backend=backend)
    assert_close_rms(out, expected)


def test_gradients_of_the_definition():
    u, delta, A, B, C, D, bias = leaves(direction(2, 4, 3, 2), torch.float64)
    z = gate(2, 4, 3).double().requires_grad_()
    for reverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda *t, reverse=reverse: naive_selective_scan(*t, True, reverse),
            (u, delta, A, B, C, D, z, bias),
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_stays_float64(backend):
    one = Direction(*(t.double() for t in direction(1, 9, 5, 3)))
    z = gate(1, 9, 5).double()
    out = bidirectional_scan(one, one, z, backend=backend)
    assert_close_rms(out, naive_bidirectional_scan(one, one, z), tolerance=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_is_computed_in_float32(backend):
    one = Direction(*direction(1, 9, 5, 3, torch.float16))
    out = bidirectional_scan(one, one, gate(1, 9, 5, torch.float16), backend=backend)
    assert out.dtype == torch.float16
    expected = naive_bidirectional_scan(one, one, gate(1, 9, 5, torch.float16))
    assert_close_rms(out, expected, tolerance=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast_and_in_inference_mode(backend):
    one = Direction(*direction(2, 9, 6, 16, torch.bfloat16))
    z = gate(2, 9, 6, torch.bfloat16)
    expected = bidirectional_scan(one, one, z, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        out = bidirectional_scan(one, one, z, backend=backend)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_A_may_be_given_as_its_logarithm(backend, dtype):
    one, z = Direction(*direction(1, 9, 5, 3)), gate(1, 9, 5)
    log = (-one.A).log().to(dtype)
    one = one._replace(A=-log.to(torch.promote_types(dtype, torch.float32)).exp())  # never rounded to a half format
    given = one._replace(A=log, log_A=True)
    expected = bidirectional_scan(one, one, z, backend=backend)
    assert_close_rms(bidirectional_scan(given, given, z, backend=backend), expected, tolerance=1e-7)


@pytest.mark.parametrize("backend", [*BACKENDS, "naive"])
def test_the_step_size_may_be_given_as_its_projection(backend):
    one, z = Direction(*direction(2, 9, 6, 3)), gate(2, 9, 6)
    features, weight = torch.randn(2, 9, 4), torch.randn(6, 4)
    one = one._replace(delta=features @ weight.T)
    given = one._replace(delta=features, dt_weight=weight)
    expected = bidirectional_scan(one, one, z, backend=backend)
    assert_close_rms(bidirectional_scan(given, given, z, backend=backend), expected, tolerance=1e-6)


@pytest.mark.parametrize("field", ["D", "delta_bias", "log_A"])
def test_directions_that_differ_in_their_fields_are_refused(field):
    one, z = Direction(*direction(1, 5, 6, 3)), gate(1, 5, 6)
    other = one._replace(**{field: True if field == "log_A" else None})
    with pytest.raises(ValueError, match=f"one direction has {field}"):
        bidirectional_scan(one, other, z)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_samples(backend):
    one = Direction(*(t[:0] if t.ndim == 3 else t for t in direction(1, 5, 6, 3)))
    assert bidirectional_scan(one, one, one.u, backend=backend).shape == (0, 5, 6)


@pytest.fixture
def cpp():
    if "cpp" not in BACKENDS:
        pytest.skip("the C++ kernel cannot be built here")
    return BIDIRECTIONAL.implementation("cpu", "cpp")


def both(channels=24, length=20):
    tensors = direction(2, length, channels, 16) + direction(2, length, channels, 16, seed=1)
    return leaves([*tensors, gate(2, length, channels)])


def flat():
    tensors = both()
    return flatten([Direction(*tensors[:7]), Direction(*tensors[7:14])], tensors[14])


def test_operator_passes_opcheck(cpp):
    opcheck(torch.ops.rmeeto.scan.default, (*flat(), True, False, True, True))
    one = flatten([Direction(*leaves(direction(2, 5, 6, 3)[:5]))], None)
    opcheck(torch.ops.rmeeto.scan.default, (*one, False, True, False, True))


def test_no_states_are_kept_without_gradients(cpp):
    tensors = [None if tensor is None else tensor.detach() for tensor in flat()]
    for keep, size in ((True, 2 * 2 * 2 * 32 * 16), (False, 0)):
        assert torch.ops.rmeeto.scan.default(*tensors, True, False, True, keep)[1].numel() == size


def test_threads_do_not_change_a_bit(cpp):
    tensors, threads = both(channels=200, length=40), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out = run_both(cpp, tensors)
            results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_channels_far_apart_in_memory(cpp):
    tensors = both()
    spread = [t.detach().mT.contiguous().mT.requires_grad_() if t.ndim == 3 else t for t in tensors]
    results = []
    for t in (tensors, spread):
        out = run_both(cpp, t)
        results.append([out, *torch.autograd.grad(out.square().sum(), t)])
    assert spread[0].stride() != tensors[0].stride()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_compiled_in_one_graph_equals_eager(cpp):
    tensors = both()

    def loss(*t):
        return run_both(bidirectional_scan, t, True).square().sum()

    expected = torch.autograd.grad(loss(*tensors), tensors)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_export_keeps_the_operator(cpp):
    class Scan(torch.nn.Module):
        def forward(self, *t):
            return run_both(cpp, t, True)

    tensors = tuple(tensor.detach() for tensor in both())
    program = torch.export.export(Scan(), tensors)
    assert any(node.target is torch.ops.rmeeto.scan.default for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*tensors), Scan()(*tensors))


@pytest.mark.parametrize(
    ("name", "change"), [("delta", lambda t: t[:, :, 1:]), ("B", lambda t: t[:, 1:]), ("D", lambda t: t[1:])]
)
def test_a_shape_that_does_not_fit_is_named(name, change):
    u, delta, A, B, C, D, bias = direction(2, 5, 6, 3)
    arguments = {"u": u.mT, "delta": delta.mT, "A": A, "B": B.mT, "C": C.mT, "D": D}
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=f"{name} has shape"):
        selective_scan(**arguments)
