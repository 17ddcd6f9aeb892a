"""Building the C++ kernels: cached, safe when several processes do it at once, and optional."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from rmeeto.ops import build
from rmeeto.ops.backend import BackendUnavailable, Operator
from rmeeto.ops.selective_scan import BIDIRECTIONAL, cpp, eager, naive
from tests.helpers import assert_close_rms
from tests.ops.test_selective_scan import both, leaves, run_both
from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fresh():
    """No library loaded yet, neither before nor after the test."""
    for cached in (build.library, build._load):
        cached.cache_clear()
    yield
    for cached in (build.library, build._load):
        cached.cache_clear()


@pytest.fixture
def compiler():
    try:
        return build.compiler()
    except BackendUnavailable as reason:
        pytest.skip(str(reason))


def runs_here(isa: str) -> bool:
    if isa == "portable":
        return True
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return platform.machine() in ("x86_64", "AMD64") and capability >= isa


@pytest.mark.parametrize("isa", build.INSTRUCTION_SETS)
def test_every_instruction_set_computes_the_same(isa, compiler, fresh, monkeypatch, nan_filled):
    if not runs_here(isa):
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setattr(build, "instruction_set", lambda: isa)
    for channels in (37, 5):
        tensors = [t.detach() for t in both(channels=channels, length=35)]
        mine, exact = leaves(tensors), leaves(tensors, torch.float64)
        got = run_both(cpp.bidirectional_scan, mine, True)
        expected = run_both(naive.naive_bidirectional_scan, exact, True)
        got.square().sum().backward()
        expected.square().sum().backward()
        assert_close_rms(got, expected, "output", 1e-6)
        for a, b in zip(mine, exact, strict=True):
            assert_close_rms(a.grad, b.grad, "gradient", 5e-6)


def test_second_build_comes_from_the_cache(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("RMEETO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "short.cpp").write_text('extern "C" int one() { return 1; }')
    monkeypatch.setattr(build, "SOURCES", tmp_path / "source")
    first = build.build("portable")
    written = first.stat().st_mtime_ns
    assert build.build("portable") == first and first.stat().st_mtime_ns == written
    assert list((tmp_path / "cache").iterdir()) == [first]


def test_changed_source_or_flags_is_another_library(monkeypatch, tmp_path):
    key = build._key(build.FLAGS)
    assert key == build._key(build.FLAGS)
    assert key != build._key((*build.FLAGS, "-g"))
    (tmp_path / "scan.cpp").write_text("int changed;")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert key != build._key(build.FLAGS)


def test_two_processes_build_at_once(compiler, tmp_path):
    code = "from rmeeto.ops import build; build.library(); print(build.build(build.instruction_set()).name)"
    hasty = tmp_path / "hasty"  # a compiler that does not optimise, which is most of the time
    hasty.write_text(f'#!/bin/sh\nexec {" ".join(compiler)} "$@" -O0\n')
    hasty.chmod(0o755)
    cache = tmp_path / "cache"
    environment = {**os.environ, "RMEETO_CACHE": str(cache), "CXX": str(hasty), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([PYTHON, "-W", "error", "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    names = {process.communicate(timeout=300)[0].decode().strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(names) == 1
    assert [path.name for path in cache.iterdir()] == list(names)


def test_loading_leaves_denormals_alone(compiler):
    build.library()
    tiny = np.float32(1e-40)
    assert tiny * np.float32(0.5) > 0
    assert torch.full((1000,), 1e-40).mul(0.5).min() > 0


def test_library_brings_no_openmp_runtime_of_its_own(compiler):
    content = build.build(build.instruction_set()).read_bytes()
    assert not any(name in content for name in (b"libgomp", b"libomp", b"libiomp"))


def test_plain_threads_where_torch_has_no_known_openmp(compiler, monkeypatch):
    tensors, threads = [t.detach() for t in both(channels=70)], torch.get_num_threads()
    expected = run_both(cpp.bidirectional_scan, tensors, True)
    monkeypatch.setattr(build, "openmp", lambda: 0)
    try:
        torch.set_num_threads(3)
        got = run_both(cpp.bidirectional_scan, tensors, True)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["CXX", "PATH"])
def test_without_a_compiler_pytorch_does_it_and_one_notice_says_so(name, fresh, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("RMEETO_BACKEND", raising=False)
    monkeypatch.setenv(name, "no-such-compiler")
    monkeypatch.setenv("RMEETO_CACHE", str(tmp_path))
    operator = Operator("bidirectional_scan", BIDIRECTIONAL.backends)
    with pytest.warns(UserWarning, match="PyTorch.*no C.. compiler") as notices:
        assert operator.implementation("cpu") is eager.eager_bidirectional_scan
        assert dict(operator.explain("cpu"))["cpp"].startswith("no C++ compiler")
        with pytest.raises(ValueError, match="cannot run here: no C"):
            operator.implementation("cpu", "cpp")
    assert len(notices) == 1


def test_a_compiler_that_fails_is_reported_with_its_error(compiler, fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("RMEETO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.cpp").write_text("this is no C++")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    with pytest.raises(BackendUnavailable, match="failed: .*broken.cpp.*error"):
        build.build("portable")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("capability", "machine", "isa"),
    [("AVX512", "x86_64", "avx512"), ("AVX2", "x86_64", "avx2"), ("DEFAULT", "x86_64", "portable"),
     ("SVE256", "aarch64", "portable")],
)  # fmt: skip
def test_instruction_set_is_the_processors(capability, machine, isa, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert build.instruction_set() == isa
