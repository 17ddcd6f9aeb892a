"""What weights were trained on travels with them, and is used again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from image_task import export
from image_task.flags import parse
from image_task.main import main, run
from image_task.models import load
from rmeeto.errors import UserError
from rmeeto.trained_on import trained_on
from tests.image_task.test_finetune import make_pictures

LINE = (
    "--model vim_nano_patch2_16 --device cpu --num_workers 0 --batch_size 4 --data_set folder --mixup 0 --cutmix 0 "
    "--repeated_aug False --accumulation 1 --lr 0.1 --epochs 2 --drop_path 0 --input_size 34 --eval_crop_ratio 0.8 "
    "--mean 0.4 0.3 0.2 --std 0.2 0.2 0.3 --output_dir log --name dense --merge_method none"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with photos/, the run log/dense, and the model folder model/."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        make_pictures(place / "photos")
        run(parse(f"{LINE} --data_path photos".split())[0])
        assert export.main(["log/dense", "model"]) == 0
    return place


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)


def evaluated(line: str) -> dict:
    config, _, notes = parse(f"--data_set folder --data_path photos --num_workers 0 --device cpu --eval {line}".split())
    return run(config)


def test_config_checkpoints_and_model_folder_say_what_it_was_trained_on():
    known = trained_on("log/dense/best.pt")
    assert known == trained_on("log/dense/last.pt")
    assert known.label_names == ("blue", "green", "red") and known.input_size == (3, 34, 34)
    assert (known.mean, known.std, known.crop_pct) == ((0.4, 0.3, 0.2), (0.2, 0.2, 0.3), 0.8)
    assert known.data_set == "folder"
    assert json.loads(Path("log/dense/config.json").read_text())["trained_on"] == known.to_dict()
    folder = trained_on("model/model.safetensors")
    assert folder.pretrained_cfg() == known.pretrained_cfg()
    assert load("model").pretrained_cfg["label_names"] == ["blue", "green", "red"]


@pytest.mark.parametrize("weights", ["log/dense/best.pt", "moved.pt", "log/dense", "model", "model/model.safetensors"])
def test_an_evaluation_prepares_pictures_as_the_training_did(weights, capsys):
    shutil.copy("log/dense/best.pt", "moved.pt")
    best = json.loads(Path("log/dense/result.json").read_text())["best"]
    result = evaluated(f"--merge_method none --model_pth {weights} --name {weights.replace('/', '-')}")
    assert (result["top1"], result["loss"]) == (best["top1"], pytest.approx(best["loss"], abs=1e-6))
    assert "34 pixels" in capsys.readouterr().out


def test_what_the_command_line_says_comes_first():
    config, _, notes = parse("--model_pth log/dense --eval --data_set folder --input_size 40 --std 1 1 1".split())
    data = config.data
    assert (data.input_size, data.mean, data.std, data.eval_crop_ratio) == (
        40,
        (0.4, 0.3, 0.2),
        (1, 1, 1),
        0.8,
    )
    assert "--mean 0.4 0.3 0.2 --eval_crop_ratio 0.8: as the weights were trained" in notes
    smoke = parse("--model_pth log/dense --smoke --data_set folder".split())[0]
    assert smoke.data.mean is None


def test_a_folder_brings_its_model_and_how_that_merges():
    run_config = json.loads(Path("log/dense/config.json").read_text())
    shutil.copytree("log/dense", "log/merged")
    run_config["merge"] = {"r": 7, "keep_order": True}
    Path("log/merged/config.json").write_text(json.dumps(run_config))
    config = parse("--model_pth log/merged --eval".split())[0]
    assert config.model.model == "vim_nano_patch2_16" and config.merge.r == 7
    assert parse("--model_pth log/merged --r 5 --eval".split())[0].merge.r == 5
    assert parse("--model_pth model --eval".split())[0].merge is None
    Path("empty").mkdir()
    with pytest.raises(UserError, match="--model_pth empty is a folder without model.safetensors, best.pt or last.pt"):
        parse("--model_pth empty --eval".split())
    shutil.copy("log/dense/last.pt", "empty")  # of a run that was never evaluated
    assert parse("--model_pth empty --eval".split())[0].model.model_pth == "empty/last.pt"
    again = parse("--config log/merged/config.json --model_pth log/dense --eval".split())[0]
    assert again.merge.r == 7, "a --config says how to merge, a folder beside it brings weights"


def test_timms_own_transform_gives_the_same_accuracy():
    best = json.loads(Path("log/dense/result.json").read_text())["best"]
    model = timm.create_model("local-dir:model", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    right = total = 0
    for path in Path("photos/val").glob("*/*"):
        with torch.no_grad():
            number = model(transform(Image.open(path).convert("RGB"))[None]).argmax().item()
        right += model.pretrained_cfg["label_names"][number] == path.parent.name
        total += 1
    assert 100 * right / total == best["top1"]


def renamed(folder: str, names: dict[str, str]) -> str:
    shutil.copytree("photos", folder)
    for split in ("train", "val"):
        for old, new in names.items():
            Path(folder, split, old).rename(Path(folder, split, new))
    return folder


def test_classes_in_another_order_are_matched_by_name(caplog):
    best = json.loads(Path("log/dense/result.json").read_text())["best"]
    known = json.loads(Path("model/config.json").read_text())
    shutil.copytree("model", "turned")
    known["label_names"] = ["red", "green", "blue"]  # as if its training had numbered them otherwise
    Path("turned/config.json").write_text(json.dumps(known))
    state = load("model").state_dict()
    state["head.weight"], state["head.bias"] = state["head.weight"].flip(0), state["head.bias"].flip(0)
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in state.items()}, "turned/model.safetensors")
    assert evaluated("--model_pth turned --name turned")["top1"] == best["top1"]
    assert "in another order than the weights'; they are matched by name" in caplog.text


def test_a_class_that_the_weights_know_and_the_data_lacks_keeps_the_numbers():
    shutil.copytree("photos", "fewer")
    for split in ("train", "val"):
        shutil.rmtree(Path("fewer", split, "green"))
    line = "--model_pth model --eval --data_set folder --data_path fewer --num_workers 0 --device cpu --name fewer"
    assert run(parse(line.split())[0])["count"] == 4


def test_classes_that_the_weights_do_not_know_are_refused(capsys):
    renamed("others", {"red": "violet"})
    line = "--model_pth model --data_set folder --data_path others --num_workers 0 --device cpu"
    assert main(f"{line} --eval --name x".split()) == 2
    error = capsys.readouterr().err
    assert "1 classes that the weights do not know, such as violet; they know 3, such as blue" in error
    assert "--delete_head" in error
    short = "--epochs 1 --max_train_batches 1 --max_eval_batches 1 --batch_size 2 --name new --accumulation 1"
    assert main(f"{line} {short} --delete_head".split()) == 0


def test_onnx_says_it_too(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = timm.create_model("vim_nano_patch2_16", depth=1)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["a", "b"]}
    from rmeeto.export import to_onnx

    props = onnx.load(to_onnx(model, tmp_path / "x.onnx")).metadata_props
    found = {prop.key: json.loads(prop.value) for prop in props if prop.key in model.pretrained_cfg}
    assert found["label_names"] == ["a", "b"] and found["input_size"] == [3, 16, 16] and found["mean"] == [0.5] * 3
