"""Loading checkpoints: what fits is loaded to the bit, what does not is named."""

import argparse
import json
import pickle
import time

import pytest
import safetensors.torch
import torch

from image_task.models import Vim, load_weights
from rmeeto import weights
from rmeeto.errors import UserError


def small(**kwargs) -> Vim:
    return Vim(
        **{
            "img_size": 16,
            "patch_size": 4,
            "stride": 4,
            "embed_dim": 16,
            "depth": 2,
            "num_classes": 3,
            **kwargs,
        }
    )


@pytest.fixture
def trained():
    torch.manual_seed(3)
    return small()


def save(state, path) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("entry", [None, "model", "state_dict", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_layouts(trained, tmp_path, entry, prefix):
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    content = state if entry is None else {entry: state, "epoch": 3, "args": argparse.Namespace(lr=1e-3, nested=[1])}
    torch.save(content, tmp_path / "w.pth")
    model = small()
    report = load_weights(model, tmp_path / "w.pth")
    assert same(model, trained)
    assert report.num_tensors == len(trained.state_dict())


def test_safetensors(trained, tmp_path):
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "w.safetensors")
    model = small()
    load_weights(model, tmp_path / "w.safetensors")
    assert same(model, trained)


def test_ema_is_chosen_on_request_and_otherwise_only_when_alone(trained, tmp_path):
    other = small()
    torch.save({"model": trained.state_dict(), "model_ema": other.state_dict()}, tmp_path / "w.pth")
    for ema, wanted in ((True, other), (False, trained), ("auto", trained)):
        model = small()
        load_weights(model, tmp_path / "w.pth", ema=ema)
        assert same(model, wanted)


class Payload:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file ran')",))


def test_a_file_never_runs_code(tmp_path):
    torch.save({"model": {"x": torch.zeros(1)}, "args": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(small(), tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(small(), tmp_path / "plain.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_named(trained, tmp_path, suffix, share):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save({"model": trained.state_dict()}, path)
    else:
        safetensors.torch.save_file(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match="cannot be read") as error:
        load_weights(model, path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) <= 2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_keys_that_do_not_fit_are_listed(trained, tmp_path):
    state = trained.state_dict()
    state["stranger"] = torch.zeros(1)
    del state["norm_f.weight"]
    state["cls_token"] = torch.zeros(1, 1, 5)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        load_weights(small(), tmp_path / "w.pth")
    text = str(error.value)
    assert "1 missing: norm_f.weight" in text
    assert "1 unexpected: stranger" in text
    assert "1 mis-shaped: cls_token (1, 1, 5) for (1, 1, 16)" in text


def test_another_number_of_classes_says_both(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="give data of 3 classes, a checkpoint for 7, or --delete_head"):
        load_weights(small(num_classes=7), tmp_path / "w.pth")


@pytest.mark.parametrize("img_size", [24, (16, 32)])
def test_position_embedding_is_resized_around_the_class_token(trained, tmp_path, img_size):
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    model = small(img_size=img_size)
    report = load_weights(model, tmp_path / "w.pth")
    assert report.resized == ("pos_embed",)
    assert torch.equal(model.pos_embed[:, model.class_index], trained.pos_embed[:, trained.class_index])
    patches = torch.cat([model.pos_embed[:, : model.class_index], model.pos_embed[:, model.class_index + 1 :]], 1)
    old = torch.cat([trained.pos_embed[:, :8], trained.pos_embed[:, 9:]], 1)
    assert patches.mean().item() == pytest.approx(old.mean().item(), abs=2e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "expected tensors"),
        ({"model": {"a": "text"}}, "expected tensors"),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        load_weights(small(), tmp_path / "w.pth")


@pytest.mark.parametrize("text", ["hello", "<!DOCTYPE html>", "(lp0\n", "\0"])
def test_a_text_file_is_no_checkpoint(tmp_path, text):
    (tmp_path / "w.pth").write_text(text)
    with pytest.raises(UserError, match="cannot be read: it is no checkpoint of torch"):
        load_weights(small(), tmp_path / "w.pth")


def test_a_run_without_an_average_is_named(tmp_path):
    torch.save({"model": small().state_dict(), "model_ema": None}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="its run kept none .--model_ema."):
        load_weights(small(), tmp_path / "last.pt", ema=True)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_weights(small(), tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder"):
        load_weights(small(), tmp_path)
    torch.save(small().state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="no entry model_ema"):
        load_weights(small(), tmp_path / "w.pth", ema=True)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(trained, tmp_path, suffix, kind):
    state = {key: value.to(kind) for key, value in trained.state_dict().items()}
    save(state, tmp_path / f"w.{suffix}")
    with pytest.raises(UserError, match=rf"of another kind of number: cls_token {str(kind)[6:]} for float32, .* more"):
        load_weights(small(), tmp_path / f"w.{suffix}")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(trained, tmp_path, suffix, value):
    state = {key: tensor.double() for key, tensor in trained.state_dict().items()}
    state["head.weight"][1, 2] = value  # 1e300 is beyond the model's float32
    save(state, tmp_path / f"w.{suffix}")
    model = small()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"not finite \(NaN or inf\) in 1 tensors: head.weight"):
        load_weights(model, tmp_path / f"w.{suffix}")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_load(trained, tmp_path, kind):
    torch.save({key: value.to(kind) for key, value in trained.state_dict().items()}, tmp_path / "w.pth")
    model = small()
    load_weights(model, tmp_path / "w.pth")
    assert torch.equal(model.head.weight, trained.head.weight.to(kind).float())


def test_whole_numbers_that_a_model_keeps_stay_whole(tmp_path):
    model = torch.nn.BatchNorm1d(2)  # counts its batches
    torch.save({**model.state_dict(), "num_batches_tracked": torch.tensor(7)}, tmp_path / "w.pth")
    weights.load_weights(model, tmp_path / "w.pth")
    assert model.num_batches_tracked == 7
    torch.save({**model.state_dict(), "num_batches_tracked": torch.tensor(7.0)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="num_batches_tracked float32 for int64"):
        weights.load_weights(model, tmp_path / "w.pth")


def test_large_finite_weights_whose_sum_overflows_load(tmp_path):
    model = torch.nn.Linear(4, 3)
    torch.save({"weight": torch.full((3, 4), 3e38), "bias": torch.zeros(3)}, tmp_path / "w.pth")
    weights.load_weights(model, tmp_path / "w.pth")


def test_an_absurd_grid_is_not_resized(trained, tmp_path):
    torch.save({**trained.state_dict(), "pos_embed": torch.zeros(1, 1001**2 + 1, 16)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"1 mis-shaped: pos_embed \(1, 1002002, 16\) for \(1, 17, 16\)"):
        load_weights(small(), tmp_path / "w.pth")


def test_a_header_of_many_tensors_is_refused_at_once(tmp_path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"x{index}": entry for index in range(500_000)}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    start = time.process_time()
    with pytest.raises(UserError, match="cannot be read: it is no safetensors file of at most 4194304 bytes of header"):
        load_weights(small(), tmp_path / "w.safetensors")
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32"}}',
        b"[" * 100_000,
        b'{"a": {"dtype": "F32", "shape": 3}}',
    ],
)
def test_a_header_that_is_none_is_one_error(tmp_path, header):
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="cannot be read: its? "):
        load_weights(small(), tmp_path / "w.safetensors")


def test_one_name_with_and_without_prefix_is_refused(trained, tmp_path):
    state = trained.state_dict()
    torch.save({**state, "module.cls_token": state["cls_token"] + 1}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds cls_token twice"):
        load_weights(small(), tmp_path / "w.pth")
