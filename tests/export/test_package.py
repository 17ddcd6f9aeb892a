"""Packages that run without Python: by a C++ program, and as Python loads them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import timm
import torch

import image_task.models  # noqa: F401  (registers the models)
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.export import to_package
from rmeeto.export.package import LIBRARY, OPERATORS, SOURCE
from rmeeto.ops import build
from rmeeto.ops.backend import BackendUnavailable
from tests.golden_data import assert_near, fill, randn

PROGRAM = SOURCE.with_name("run.cpp")


def nano(merge=None):
    return fill(timm.create_model("vim_nano_patch2_16", depth=3, num_classes=7, merge=merge)).eval()


def test_without_a_compiler_there_is_one_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setattr("torch.export.export", lambda *_, **__: pytest.fail("it is known before"))
    with pytest.raises(UserError, match="to_package: no C.. compiler .*; it compiles the model and needs a C..20"):
        to_package(nano(), tmp_path / "vim.pt2")
    assert not list(tmp_path.iterdir())


def test_what_a_package_cannot_be_is_one_error(tmp_path):
    with pytest.raises(UserError, match="vim.onnx; expected a file that ends in .pt2"):
        to_package(nano(), tmp_path / "vim.onnx")
    with pytest.raises(UserError, match="to_package: Vim has shuffle='random', and a graph draws no random order"):
        to_package(nano(MergeConfig(r=3, shuffle="random", shuffle_rate=0.5)), tmp_path / "vim.pt2")


def test_the_library_has_every_operator():
    source = SOURCE.read_text()
    assert tuple(name.lower() for name in re.findall(r"library\.def\(RMEETO_(\w+)\)", source)) == OPERATORS
    assert tuple(re.findall(r'library\.impl\("(\w+)", TORCH_BOX\(&\1\)\)', source)) == OPERATORS
    assert len(PROGRAM.read_text().splitlines()) < 40


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The C++ program, built as its first lines say."""
    try:
        compiler = build.compiler()
    except BackendUnavailable as reason:
        pytest.skip(str(reason))
    torch_folder = Path(torch.__file__).parent
    words = " ".join(re.findall(r"^//   (.*?)\\?$", PROGRAM.read_text(), re.MULTILINE)[:2]).split()
    words = [word.replace("$TORCH", str(torch_folder)) for word in words]
    built = tmp_path_factory.mktemp("program") / "run"
    command = [*compiler, words[1], str(PROGRAM), *words[3:-1], str(built)]
    subprocess.run(command, check=True, timeout=500)
    return built


def run(program, package, x) -> subprocess.CompletedProcess:
    """The program on a batch; its folder holds the library."""
    images = package.with_name("images.bin")
    x.numpy().tofile(images)
    command = [program, package.with_name(LIBRARY), package, images, *map(str, x.shape)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    "merge", [None, MergeConfig(r=3, class_position="exact"), MergeConfig(r=3, metric="delta", mode="amax")]
)
def test_a_program_without_python_gives_the_models_logits(merge, program, tmp_path):
    model = nano(merge).train()
    package = to_package(model, tmp_path / "vim.pt2")
    assert model.training
    model.eval()
    in_python = torch._inductor.aoti_load_package(str(package))
    for batch in (1, 4):
        x = randn(batch, (batch, 3, 16, 16))
        ran = run(program, package, x)
        logits = torch.tensor([float(line) for line in ran.stdout.split()]).view(batch, 7)
        expected = model(x).detach().numpy()
        assert_near(logits, expected, 1e-5)
        assert_near(in_python(x), expected, 1e-5)
    ran = subprocess.run([program, tmp_path / "none.so", package, tmp_path / "images.bin", "1"],
                         capture_output=True, text=True)  # fmt: skip
    assert ran.returncode == 2 and "none.so" in ran.stderr


@pytest.mark.slow
def test_a_package_of_a_fixed_batch_size_takes_that_one_alone(program, tmp_path):
    model = nano(MergeConfig(r=3))
    package = to_package(model, tmp_path / "vim.pt2", batch_size=3)
    x = randn(3, (3, 3, 16, 16))
    logits = torch.tensor([float(line) for line in run(program, package, x).stdout.split()]).view(3, 7)
    assert_near(logits, model(x).detach().numpy(), 1e-5)
    for other in (x[:2], torch.cat([x, x])):
        ran = run(program, package, other.contiguous())
        assert ran.returncode == 1 and not ran.stdout
        said = ran.stderr.splitlines()[-1]
        assert said.startswith("error: ") and f"expected: 3, but got: {len(other)}" in said
