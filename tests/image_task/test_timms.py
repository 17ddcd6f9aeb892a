"""Models by timm's own names on the command lines of the image task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from image_task.flags import parse
from image_task.main import build_model, main
from image_task.models import MODELS
from image_task.throughput import COMMAND as SPEED
from rmeeto.cli.timms import is_timms, unknown
from rmeeto.errors import UserError

VIT = "test_vit"  # timm's own for tests: 64 channels, 6 blocks, 160 pixels
LINE = f"--model {VIT} --input_size 64 --device cpu --num_workers 0 --batch-size 4"
SHORT = "--epochs 1 --max_train_batches 2 --max_eval_batches 1 --accumulation 1"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    torch.save(timm.create_model(VIT, num_classes=10).state_dict(), tmp_path / "vit.pth")
    return Path("vit.pth")


def test_a_vision_transformer_is_re_trained_with_its_dense_teacher(weights, capsys):
    assert main(f"{LINE} {SHORT} --num_prune 1 --if_order --distill --model_pth {weights} --name x".split()) == 0
    told = capsys.readouterr().out
    assert "17 to 12 (r = 1) tokens, 64 pixels" in told and "vit.pth (pos_embed resized)" in told
    assert json.loads(Path("log/x/result.json").read_text())["steps"] == 2


@torch.no_grad()
def test_the_dense_model_is_timms_and_the_merged_one_has_its_weights(weights):
    line = f"--model {VIT} --num_prune 4 --if_order --model_pth {weights} --nb_classes 10"
    config, _, _ = parse(line.split())
    dense, merged = (build_model(config, merge, num_classes=10).eval() for merge in (None, config.merge))
    theirs = timm.create_model(VIT, num_classes=10).eval()
    theirs.load_state_dict(torch.load(weights))
    x = torch.randn(2, 3, 160, 160)
    assert torch.equal(dense(x), theirs(x))
    assert merged.num_tokens == [101, 97, 93, 89, 85, 81] and not torch.equal(merged(x), theirs(x))
    assert set(merged.state_dict()) == set(theirs.state_dict())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("resnet18", "cannot merge tokens in ResNet"),
        ("beit_base_patch16_224", "cannot merge tokens in Beit"),
        ("vit_tiny_patch16_224.nothing", "Invalid pretrained tag"),
        ("resnet18 --input_size 64", "img_size"),
        (f"{VIT} --pretrained auto", f"no official weights of {VIT} are known"),
        (f"{VIT} --num_prune 4 --metric B", "--metric B"),
    ],
)
def test_what_cannot_merge_is_refused_with_the_reason(line, reason, capsys):
    assert main(f"--dry_run --model {line}".split()) == 2
    (error,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert reason in error


def test_names_of_timm_are_known_with_and_without_a_tag():
    assert all(map(is_timms, ("deit_small_patch16_224", "vit_small_patch14_dinov2.lvd142m")))
    assert not any(map(is_timms, ("rmeeto_deit_tiny_patch16_224", "vim_nano_patch2_16", "nothing", "hf-hub:a/b")))
    assert parse(["--model", "vit_small_patch14_dinov2"])[0].img_size == 518


def test_they_are_timed(capsys):
    options = SPEED.parse(f"--model {VIT} --r 4 --img_size 64 --device cpu --batch_size 1 --runs 5".split())
    result = SPEED.measure(options)
    assert [row["tokens"][-1] for row in result["results"]] == [17, 2]
    assert result["input_size"] == [3, 64, 64]


ROTARY = {"eva02_tiny_patch14_224": 56, "vit_small_patch16_dinov3": 64, "vit_small_patch14_reg4_dinov2": 56}


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_positions_and_registers_in_both_commands(name, capsys):
    line = f"--model {name} --input_size {ROTARY[name]} --r 2 --device cpu --num_workers 0 --batch_size 2"
    assert main([*line.split(), "--eval", "--max_eval_batches", "1", "--name", "x"]) == 0
    tokens = 16 + {"eva02_tiny_patch14_224": 1}.get(name, 5)
    depth = 12
    assert f"{tokens} to" in capsys.readouterr().out
    result = SPEED.measure(
        SPEED.parse(f"--model {name} --input_size {ROTARY[name]} --r 1 --device cpu --batch_size 1 --runs 5".split())
    )
    assert [row["tokens"][-1] for row in result["results"]] == [tokens, tokens - depth + 1]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("dinov2", "vit_base_patch14_dinov2"),
        ("dinov2_small", "vit_small_patch14_dinov2"),
        ("eva02_tiny", "eva02_tiny_patch14_224"),
        ("vit-small-dinov3", "vit_small_patch16_dinov3"),
    ],
)
def test_parts_of_a_name_find_it(typed, meant, capsys):
    assert main(["--model", typed, "--dry_run"]) == 2
    assert f"did you mean {meant} or" in capsys.readouterr().err


def test_all_names_are_listed_in_80_columns():
    lines = str(unknown("xyz", MODELS, ["RMeeTo_tiny"], timms=True)).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) > 4
    assert all(name in "\n".join(lines) for name in MODELS)
    with pytest.raises(UserError, match="did you mean rmeeto_deit_tiny_patch16_224"):
        raise unknown("deit_tiny_patch16_224", MODELS, [])
