"""Models for others' programs: ONNX from any example, programs of torch's operators alone."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
import timm
import torch

import image_task.models  # noqa: F401  (registers the models)
import rmeeto
from rmeeto import MergeConfig
from rmeeto.errors import UserError
from rmeeto.export import to_onnx, to_program
from rmeeto.export.program import _input_size
from tests.warm import PYTHON

LOAD = (
    "import sys, torch; sys.modules['rmeeto'] = None\n"
    "for name in sys.argv[1:]:\n"
    "    saved, model = torch.load(name + '.pt'), torch.export.load(name + '.pt2').module()\n"
    "    assert all(torch.allclose(model(x), y, atol=1e-4) for x, y in saved), name\n"
)


@torch.no_grad()
def test_programs_run_where_this_library_is_not(tmp_path):
    torch.manual_seed(0)
    models = {"dense": (1, None), "merged": (2, MergeConfig(r=6, interval=1))}
    for name, (depth, merge) in models.items():
        model = timm.create_model("vim_nano_patch2_16", depth=depth, merge=merge).eval()
        to_program(model, tmp_path / f"{name}.pt2")
        inputs = [torch.randn(batch, 3, 16, 16) for batch in (1, 3)]
        torch.save([(x, model(x)) for x in inputs], tmp_path / f"{name}.pt")
    command = [PYTHON, "-c", LOAD, *models]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_what_a_program_cannot_be_is_one_error(tmp_path):
    with pytest.raises(UserError, match="to_program: path=.*x.onnx; expected a file that ends in .pt2"):
        to_program(torch.nn.Linear(2, 2), tmp_path / "x.onnx")
    with pytest.raises(UserError, match="to_program: Linear does not say its input size"):
        to_program(torch.nn.Linear(2, 2), tmp_path / "x.pt2")


def test_the_input_is_of_the_size_that_the_model_was_made_for():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, in_chans=1)
    assert vit.pretrained_cfg["input_size"] == (3, 224, 224) and _input_size(vit) == (1, 64, 64)
    assert _input_size(timm.create_model("vim_nano_patch2_16", img_size=(16, 8), depth=1)) == (3, 16, 8)
    assert _input_size(SimpleNamespace(pretrained_cfg={"input_size": (3, 9, 9)})) == (3, 9, 9)


@torch.no_grad()
def test_an_onnx_file_of_one_sample_takes_any_batch_and_has_names(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5).eval()
    merged, other = rmeeto.apply(vit, MergeConfig(r=3)), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5))
    for model, size, example, names in (
        (merged, 64, None, ("images", "logits")),
        (other, 4, torch.randn(1, 3, 4, 4), ("a", "b")),
    ):
        session = runtime.InferenceSession(to_onnx(model.eval(), tmp_path / "model.onnx", example, names=names))
        assert (session.get_inputs()[0].name, session.get_outputs()[0].name) == names
        for batch in (1, 3):
            x = torch.randn(batch, 3, size, size)
            (logits,) = session.run([names[1]], {names[0]: x.numpy()})
            assert torch.allclose(torch.from_numpy(logits), model(x), atol=1e-4)
