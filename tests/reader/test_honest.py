"""The reader on files of all kinds that people have: what they hold is what was saved."""

from __future__ import annotations

import argparse
import collections
import fractions
import pathlib
import shlex
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from image_task.models import load_weights
from rmeeto.reader import DIGEST, Unreadable, digest, read
from tests.reader.crafted import BUILD, call, items, name, number, text, zip_file
from tests.warm import PYTHON

W = torch.arange(12.0).reshape(3, 4)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.equal(b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


PLAIN = {
    "text": "ü", "bytes": b"\x80a", "number": 2**80, "negative": -5, "float": 0.1, "none": None, "yes": True,
    "list": [1, [2]], "tuple": (1, 2, 3, 4), "empty": (), "set": {1, "a"}, "complex": 1 + 2j, 7: "a whole key",
    (1, "a"): "a tuple's key", "dtype": torch.bfloat16, "bytearray": bytearray(b"ab"), "deep": {"a": {"b": [{}]}},
}  # fmt: skip
TENSORS = {
    "matrix": W, "transposed": W.t(), "row": W[1], "column": W[:, 1], "every second": W[::2, 1::2], "number": W[1, 1],
    "empty": torch.empty(0, 3), "view of nothing": torch.empty(3, 0)[1:], "half": W.half(), "bfloat16": W.bfloat16(),
    "double": W.double(), "int": torch.tensor(5), "short": torch.tensor([-5], dtype=torch.int16),
    "byte": torch.tensor([5], dtype=torch.uint8), "bool": W > 3, "complex": W.to(torch.complex64),
}  # fmt: skip
NEWER = {
    "uint16": torch.tensor([5], dtype=torch.uint16),
    "float8": W.to(torch.float8_e4m3fn).view(torch.uint8),
}
NUMPY = {
    "float64": np.float64(0.1), "int": np.int64(-3), "bool": np.bool_(True), "half": np.float16(0.5),
    "array": np.arange(6, dtype=np.float32).reshape(2, 3), "columns": np.asfortranarray(np.ones((2, 3))),
    "bytes": np.arange(3, dtype=np.uint8), "big-endian": np.arange(3, dtype=">i4"), "none": np.zeros((0, 2)),
    "number": np.array(3.0),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_and_tensors(tmp_path, protocol):
    content = {"plain": PLAIN, "tensors": TENSORS | NEWER}
    torch.save(content, tmp_path / "x.pth", pickle_protocol=protocol)
    assert same(read(tmp_path / "x.pth"), content)


def test_the_format_before_zip(tmp_path):
    content = {"plain": PLAIN, "tensors": TENSORS, "again": W}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert same(read(tmp_path / "x.pth"), content)


@pytest.mark.parametrize("protocol", [2, 4])
def test_numbers_and_arrays_of_numpy(tmp_path, protocol):
    torch.save(NUMPY, tmp_path / "x.pth", pickle_protocol=protocol)
    expected = {k: v.item() if isinstance(v, np.generic) else v for k, v in NUMPY.items()}
    assert same(read(tmp_path / "x.pth"), expected)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_and_arrays_of_either_numpy(tmp_path, core):
    """As NumPy 1 and 2 write them, which name their modules differently."""
    kind = call("numpy.dtype", text("f8"), number(0), number(1))
    kind += items(number(3), text("<"), b"N", b"N", b"N", number(-1), number(-1), number(0)) + BUILD
    raw = call("_codecs.encode", text("\0\0\0\0\0\0\u00f8?"), text("latin1"))
    one = call(f"numpy.{core}.multiarray.scalar", kind, raw)
    start = call(f"numpy.{core}.multiarray._reconstruct", name("numpy.ndarray"), items(number(0)), text(b"b"))
    array = start + items(number(1), items(number(1), number(1)), kind, b"\x89", raw) + BUILD
    found = read(zip_file(tmp_path / "x.pth", b"]" + one + b"a" + array + b"a"))
    assert found[0] == 1.5 and same(found[1], np.array([[1.5]]))


def test_an_array_that_stands_in_two_places(tmp_path):
    array = np.arange(3)
    torch.save({"a": array, "b": [array]}, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    assert found["a"] is found["b"][0] and same(found["a"], array)


class AttributeDict(dict):
    """Lightning's class of this name keeps a module's arguments."""

    __module__ = "lightning.fabric.utilities.data"


OPTIONS = {
    "as the official files have them": argparse.Namespace(
        lr=np.float64(1e-3), output_dir=pathlib.Path("/runs/vim"), resume="", betas=(0.9, 0.95), device="cuda",
    ),
    "simple": types.SimpleNamespace(a=[1]),
    "counted": collections.Counter("aab"),
    "by default": collections.defaultdict(list, a=[1]),
    "ordered": collections.OrderedDict(a=1),
    "sizes": W.shape,
    "device": torch.device("cuda", 1),
    "a parameter": torch.nn.Parameter(W),
    "a type": {"type": float},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "before zip"])
def test_what_stands_beside_the_weights_does_no_harm(tmp_path, options, new):
    model = torch.nn.Linear(4, 3)
    content = {"model": model.state_dict(), "args": options, "epoch": 3}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    other = torch.nn.Linear(4, 3)
    load_weights(other, tmp_path / "x.pth")
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    values = read(tmp_path / "x.pth")["args"]
    if isinstance(options, argparse.Namespace):
        assert values.values["output_dir"] == "/runs/vim" and values.values["lr"] == 1e-3


def test_a_file_of_lightning(tmp_path, monkeypatch):
    *parts, _ = f"{AttributeDict.__module__}.".split(".")
    for count in range(1, len(parts) + 1):
        module = types.ModuleType(".".join(parts[:count]))
        module.AttributeDict = AttributeDict
        monkeypatch.setitem(sys.modules, module.__name__, module)
    content = {
        "epoch": 3, "global_step": 100, "pytorch-lightning_version": "2.4.0",
        "state_dict": {"weight": W, "bias": W[:, 0]},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": None}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "lr_schedulers": [{"milestones": collections.Counter({3: 1})}], "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(lr=0.1),
    }  # fmt: skip
    torch.save(content, tmp_path / "x.ckpt")
    model = torch.nn.Linear(4, 3)
    load_weights(model, tmp_path / "x.ckpt")
    assert same(model.weight.data, W)


def test_a_file_of_timm(tmp_path):
    import timm
    from timm.utils import CheckpointSaver

    model = timm.create_model("test_vit", num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters())
    args = argparse.Namespace(model="test_vit", opt_betas=None)
    saver = CheckpointSaver(model, optimizer, args, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=50.0)
    other = timm.create_model("test_vit", num_classes=3)
    load_weights(other, tmp_path / "last.pth.tar")
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_checksums_that_torch_was_told_to_leave_out(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": W}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read(tmp_path / "x.pth"), {"w": W})


def test_a_class_that_is_not_known_is_named_with_the_way_out(tmp_path):
    torch.save({"model": {"w": W}, "extra": fractions.Fraction(1, 2)}, tmp_path / "it's.pth")
    with pytest.raises(Unreadable) as caught:
        read(tmp_path / "it's.pth")
    reason = str(caught.value)
    assert "fractions.Fraction" in reason
    command = reason[reason.index("python -c") :]
    subprocess.run([PYTHON, *shlex.split(command)[1:]], cwd=tmp_path, check=True)
    assert same(read(tmp_path / "plain.pth"), {"w": W})


def test_a_pickled_model_is_told_how_to_become_plain(tmp_path):
    model = torch.nn.Linear(2, 2)
    for place, content in enumerate((model, {"epoch": 3, "model": model})):
        torch.save(content, tmp_path / f"{place}.pth")
        with pytest.raises(Unreadable, match="holds torch.nn.modules.linear.Linear") as caught:
            read(tmp_path / f"{place}.pth")
        command = str(caught.value).partition("make it plain: ")[2]
        subprocess.run([PYTHON, *shlex.split(command)[1:]], cwd=tmp_path, check=True)
        assert same(read(tmp_path / "plain.pth"), dict(model.state_dict()))


def test_sizes_and_other_tuples_have_the_digest_of_what_is_read(tmp_path):
    content = {"size": torch.Size((2, 3)), "ordered": collections.OrderedDict(a=1), "list": [1, (2, [2.0])]}
    torch.save({**content, DIGEST: digest(content)}, tmp_path / "x.pt")
    assert same(read(tmp_path / "x.pt"), {**content, "size": (2, 3)})


def test_what_is_nested_too_deeply_has_no_digest():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Unreadable, match="nested too deeply"):
        digest(deep)


def test_a_digest_sees_every_change(tmp_path):
    content = {"model": {"a": W, "b": W + 1}, "step": 3, "rates": [0.1, None]}
    torch.save({**content, DIGEST: digest(content)}, tmp_path / "x.pt")
    assert same(read(tmp_path / "x.pt"), content)
    changes = [
        {**content, "step": 4},
        {**content, "step": 3.0},
        {**content, "step": True},
        {**content, "rates": [0.1]},
        {**content, "rates": (0.1, None)},
        {**content, "more": None},
        {**content, "model": {"a": W + 1, "b": W}},
        {**content, "model": {"b": W, "a": W + 1}},
        {**content, "model": {"a": W.half(), "b": W + 1}},
        {**content, "model": {"a": W.reshape(4, 3), "b": W + 1}},
        {**content, "model": {"a": W, "b": (W + 1).nextafter(W)}},
        {**content, "model": {"a": W}},
    ]
    for changed in changes:
        torch.save({**changed, DIGEST: digest(content)}, tmp_path / "x.pt")
        with pytest.raises(Unreadable, match="another digest"):
            read(tmp_path / "x.pt")


def test_what_was_read_survives_the_file(tmp_path):
    torch.save({"w": W}, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    found["w"] += 1
    (tmp_path / "x.pth").write_bytes(b"")
    assert same(found, {"w": W + 1})


def test_mapped_tensors_are_not_written_to_the_file(tmp_path):
    torch.save({"w": W}, tmp_path / "x.pth")
    read(tmp_path / "x.pth", mapped=True)["w"] += 1
    assert same(read(tmp_path / "x.pth"), {"w": W})
