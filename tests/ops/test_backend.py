"""Who runs an operator: the ladder, what the environment forces, and what is said about it."""

from __future__ import annotations

import pytest
import torch

from rmeeto.errors import UserError
from rmeeto.ops.add_norm import ADD_NORM
from rmeeto.ops.backend import Backend, BackendUnavailable, Operator, forced
from rmeeto.ops.conv1d import CONV1D
from rmeeto.ops.selective_scan import BIDIRECTIONAL, SCAN, eager


def unavailable():
    raise BackendUnavailable("because")


def operator() -> Operator:
    return Operator(
        "example",
        [
            Backend("triton", ("cuda",), lambda: "on a GPU"),
            Backend("upstream", ("cpu", "cuda"), unavailable),
            Backend("naive", ("any",), lambda: "the definition", automatic=False),
            Backend("torch", ("any",), lambda: "everywhere"),
        ],
    )


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch):
    monkeypatch.delenv("RMEETO_BACKEND", raising=False)


def test_best_backend_that_runs_is_chosen():
    assert operator().implementation("cuda") == "on a GPU"
    assert operator().implementation("cpu") == "everywhere"
    assert operator().chosen("cpu") == "torch"


def test_a_request_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("RMEETO_BACKEND", "torch")
    assert operator().implementation("cpu", "naive") == "the definition"
    assert operator().implementation("cuda") == "everywhere"


def test_the_environment_is_read_at_every_call(monkeypatch):
    example = operator()
    assert example.implementation("cuda") == "on a GPU"
    monkeypatch.setenv("RMEETO_BACKEND", "naive")
    assert example.implementation("cuda") == "the definition"


@pytest.mark.parametrize("before", [None, "naive"])
def test_a_backend_is_forced_for_a_while(before, monkeypatch):
    if before:
        monkeypatch.setenv("RMEETO_BACKEND", before)
    example = operator()
    outside = example.implementation("cuda")
    with pytest.raises(KeyError), forced("torch"):
        assert example.implementation("cuda") == "everywhere"
        with forced("auto"):
            assert example.implementation("cuda") == "on a GPU"
        assert example.implementation("cuda") == "everywhere"
        raise KeyError
    assert example.implementation("cuda") == outside


def test_a_compiled_graph_keeps_what_was_chosen(monkeypatch):
    ways = {name: lambda x, shift=shift: x + shift for shift, name in enumerate(("torch", "naive"), 1)}
    examples = [Operator("example", [Backend(name, ("any",), lambda name=name: ways[name])]) for name in ways]

    def both(x):
        for example in examples:
            x = example.implementation(x.device.type)(x)
        return x

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(2)).tolist() == [3, 3] == both(torch.zeros(2)).tolist()
    monkeypatch.setattr(Operator, "_resolve", None)
    assert compiled(torch.zeros(2)).tolist() == [3, 3]


def test_what_is_forced_has_a_known_name():
    with pytest.raises(UserError, match="backend='fastest'; expected one of"), forced("fastest"):
        pytest.fail("not reached")


def test_the_environment_may_name_what_only_other_operators_have(monkeypatch):
    monkeypatch.setenv("RMEETO_BACKEND", "cpp")
    assert operator().implementation("cuda") == "on a GPU"


def test_torch_can_be_forced_for_every_operator(monkeypatch):
    monkeypatch.setenv("RMEETO_BACKEND", "torch")
    assert SCAN.implementation("cpu") is eager.eager_selective_scan
    assert [op.chosen("cpu") for op in (SCAN, BIDIRECTIONAL, CONV1D, ADD_NORM)] == ["torch"] * 4


def test_every_state_is_explained():
    assert operator().explain("cpu") == [
        ("triton", "for cuda only"),
        ("upstream", "because"),
        ("naive", "available"),
        ("torch", "chosen"),
    ]


@pytest.mark.parametrize(
    ("device", "request_", "message"),
    [
        ("cpu", "fast", "backend='fast'; expected one of"),
        ("cpu", "cpp", "no backend 'cpp' for cpu; this operator has upstream, naive, torch"),
        ("cpu", "triton", "no backend 'triton' for cpu"),
        ("cpu", "upstream", "cannot run here: because"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(device, request_, message):
    with pytest.raises(ValueError, match=message):
        operator().implementation(device, request_)


def test_an_unknown_name_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("RMEETO_BACKEND", "fastest")
    with pytest.raises(UserError, match="RMEETO_BACKEND='fastest'"):
        operator().implementation("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("triton", "example has no backend 'triton' for cpu; this operator has upstream, naive, torch"),
        ("upstream", "that backend of example cannot run here: because"),
    ],
)
def test_what_the_environment_forces_and_cannot_be_is_an_error(name, message, monkeypatch):
    monkeypatch.setenv("RMEETO_BACKEND", name)
    with pytest.raises(UserError, match=f"RMEETO_BACKEND='{name}': {message}"):
        operator().implementation("cpu")
    assert operator().implementation("cpu", "naive") == "the definition"
