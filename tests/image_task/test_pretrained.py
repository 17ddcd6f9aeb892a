"""Official weights by name: the table, the folder, the hub, and `--pretrained auto`."""

import re
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from image_task.flags import parse
from image_task.main import build_model, main
from image_task.models import MODELS
from image_task.models.pretrained import OFFICIAL, load_official, resolve
from rmeeto.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NANO = "vim_nano_patch2_16"
OFFLINE = "without a network, put"


@pytest.fixture(autouse=True)
def nothing_is_fetched(tmp_path, monkeypatch):
    """An own folder, an empty cache of the hub, no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RMEETO_WEIGHTS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def nano(monkeypatch):
    """A small model with an official file of its own, which holds plain and averaged weights; returns both."""
    states = [timm.create_model(NANO).state_dict() for _ in range(2)]
    entry = replace(OFFICIAL["vim_tiny_patch16_224"], num_tensors=len(states[0]))
    monkeypatch.setitem(OFFICIAL, NANO, entry)
    Path("weights").mkdir()
    torch.save({"model": states[0], "model_ema": states[1]}, Path("weights", entry.file))
    return states


def holds(model, state):
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_table_agrees_with_the_models_and_with_the_document(name):
    entry = OFFICIAL[name]
    assert name in MODELS
    with torch.device("meta"):
        assert len(timm.create_model(name).state_dict()) == entry.num_tensors
    rows = (ROOT / "PRETRAINED.md").read_text().splitlines()
    row = next(line for line in rows if line.startswith("|") and f"`{name}`" in line)
    assert f"`{entry.file}`" in row and re.search(rf"\| {entry.num_tensors} \|", row)
    assert ("(EMA)" in row) == entry.ema
    if "deit" in name:
        timms = get_pretrained_cfg(name.removeprefix("rmeeto_"))
        assert (entry.repository, entry.file) == (timms.hf_hub_id, timms.url.rpartition("/")[2])
    else:
        assert f"`{entry.repository}`" in row


def test_the_folder_comes_before_the_hub(nano, tmp_path, monkeypatch):
    monkeypatch.setattr("image_task.models.pretrained.fetch", None)
    assert resolve(NANO).samefile(tmp_path / "weights" / OFFICIAL[NANO].file)
    Path("weights").rename("elsewhere")
    monkeypatch.setenv("RMEETO_WEIGHTS", str(tmp_path / "elsewhere"))
    assert resolve(NANO).parent == tmp_path / "elsewhere"


def test_what_the_folder_lacks_is_asked_of_the_hub(tmp_path, monkeypatch):
    asked = []

    def download(repository, file, revision=None, local_files_only=False):
        asked.append((repository, file))
        (tmp_path / file).write_bytes(b"weights")
        return str(tmp_path / file)

    monkeypatch.setattr("rmeeto.hub.get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr("rmeeto.hub.hf_hub_download", download)
    assert resolve("vim_small_patch16_224") == tmp_path / "vim_s_midclstok_80p5acc.pth"
    assert resolve("rmeeto_deit_tiny_patch16_224") == tmp_path / "model.safetensors"
    assert asked == [
        ("hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
        ("timm/deit_tiny_patch16_224.fb_in1k", "model.safetensors"),
    ]


def test_a_recorded_size_is_held_against_the_file(nano, monkeypatch):
    size = resolve(NANO).stat().st_size
    monkeypatch.setitem(OFFICIAL, NANO, replace(OFFICIAL[NANO], size=size))
    resolve(NANO)
    monkeypatch.setitem(OFFICIAL, NANO, replace(OFFICIAL[NANO], size=size + 1))
    with pytest.raises(UserError, match=rf"has {size} bytes; the official file has {size + 1}\n"):
        resolve(NANO)


def test_averaged_weights_are_taken_where_the_reported_accuracy_is_theirs(nano, monkeypatch):
    plain, averaged = nano
    model = timm.create_model(NANO)
    assert load_official(model, NANO).entry == "model" and holds(model, plain)
    assert load_official(model, NANO, ema=True).entry == "model_ema" and holds(model, averaged)
    monkeypatch.setitem(OFFICIAL, NANO, replace(OFFICIAL[NANO], ema=True))
    assert load_official(model, NANO).entry == "model_ema" and holds(model, averaged)
    assert load_official(model, NANO, ema=False).entry == "model" and holds(model, plain)
    torch.save({"model": plain}, resolve(NANO))
    assert load_official(model, NANO).entry == "model" and holds(model, plain)


def test_student_and_teacher_load_the_file(nano):
    config, _, notices = parse("--pretrained auto --distill --num_prune 12 --if_order --drop_path 0".split())
    assert notices == [] and config.model.pretrained == "auto"
    student = build_model(config, config.merge, num_classes=10)
    teacher = build_model(config, None, num_classes=10, teacher=True)
    assert holds(student, nano[0]) and holds(teacher, nano[0])
    config, _, _ = parse("--pretrained auto --distill --weights ema".split())
    assert holds(build_model(config, None, num_classes=10, teacher=True), nano[1])


def test_the_command_line_evaluates_them(nano, capsys):
    line = "--pretrained auto --eval --device cpu --num_workers 0 --batch-size 16 --max_eval_batches 1"
    assert main(line.split()) == 0
    assert f"weights official, {OFFICIAL[NANO].file}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no official weights of vim_nano_patch2_16 are known; there are those of vim_tiny_patch16_224"),
        ("--dry_run", "no official weights of vim_nano_patch2_16 are known"),
        ("--model vim_tiny_patch16_224", f"{OFFLINE} vim_t_midclstok_76p1acc.pth into "),
        ("--model rmeeto_deit_tiny_patch16_224", f"{OFFLINE} deit_tiny_patch16_224-a1311bcf.pth into "),
        ("--model_pth weights.pth", "--pretrained auto; expected none beside --model_pth weights.pth"),
    ],
)
def test_what_fails_is_one_error(line, message, tmp_path, capsys):
    assert main([*f"--pretrained auto --device cpu {line}".split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and len(captured.err.splitlines()) <= 2
    assert "/weights, or name its folder in RMEETO_WEIGHTS" in captured.err or OFFLINE not in message
    assert not (tmp_path / "log").exists()


def test_only_auto_is_understood():
    with pytest.raises(UserError, match="--pretrained weights.pth; expected one of none, auto"):
        parse(["--pretrained", "weights.pth"])


def test_a_file_of_another_model_or_a_cut_one_is_one_error(nano):
    config, _, _ = parse(["--pretrained", "auto"])
    path = resolve(NANO)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read"):
        build_model(config, None, num_classes=10)
    torch.save({"model": {"conv1.weight": torch.zeros(3)}}, path)
    with pytest.raises(UserError, match="does not fit"):
        build_model(config, None, num_classes=10)


def test_smoke_takes_no_weights(capsys):
    config, _, notices = parse("--smoke --pretrained auto --model vim_tiny_patch16_224".split())
    assert config.model.pretrained is None
    assert "--pretrained has no effect: --smoke has its own" in notices


def test_a_file_of_another_count_is_one_error(nano, monkeypatch):
    monkeypatch.setitem(OFFICIAL, NANO, replace(OFFICIAL[NANO], num_tensors=415))
    with pytest.raises(UserError, match=rf"weights/.* has {len(nano[0])} tensors of {NANO}; .* has 415\n"):
        load_official(timm.create_model(NANO), NANO)


def test_a_model_without_a_head_takes_the_rest(nano):
    model = timm.create_model(NANO, num_classes=0)
    assert load_official(model, NANO, new_head=True).new == () and holds(model, nano[0])


def test_a_new_head_is_drawn_from_the_seed(nano):
    heads = []
    for seed in (1, 1, 2):
        config, _, _ = parse(f"--pretrained auto --delete_head --seed {seed}".split())
        model = build_model(config, config.merge, num_classes=5)
        state = model.state_dict()
        assert state["head.weight"].shape == (5, 32)
        heads.append(state["head.weight"])
        assert all(torch.equal(state[key], nano[0][key]) for key in state if not key.startswith("head."))
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_teacher_needs_a_trained_head(nano, tmp_path):
    """Of its own weights; the student's have none left."""
    line = "--pretrained auto --delete_head --distill"
    config, _, _ = parse(line.split())
    with pytest.raises(
        UserError, match="model.delete_head leaves the teacher no head .* as model.teacher_pth, or leave"
    ):
        build_model(config, None, num_classes=10, teacher=True)
    torch.save(nano[1], tmp_path / "teacher.pth")
    config, _, _ = parse(f"{line} --teacher_pth teacher.pth".split())
    assert holds(build_model(config, None, num_classes=10, teacher=True), nano[1])
    student = build_model(config, config.merge, num_classes=10).state_dict()
    assert not torch.equal(student["head.weight"], nano[0]["head.weight"])
    assert torch.equal(student["cls_token"], nano[0]["cls_token"])


def test_a_new_head_is_not_evaluated(nano, capsys, tmp_path):
    line = "--pretrained auto --delete_head --eval --device cpu --num_workers 0 --max_eval_batches 1"
    assert main(line.split()) == 2
    assert "--delete_head leaves no head to evaluate; leave it out, or train" in capsys.readouterr().err
    assert not (tmp_path / "log").exists()


def test_weights_of_other_classes_start_a_run(tmp_path, capsys):
    """1000-class weights cannot start on ten digits without the flag, whose name the error gives, and can with it."""
    torch.save(timm.create_model(NANO, num_classes=1000).state_dict(), tmp_path / "weights.pth")
    line = (
        "--model_pth weights.pth --num_prune 4 --if_order --epochs 1 --warmup_epochs 0 --max_train_batches 1 "
        "--max_eval_batches 1 --batch_size 4 --num_workers 0 --device cpu --mixup 0 --cutmix 0"
    )
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert "head.weight (1000, 32) for (10, 32)" in error and "--delete_head" in error
    assert main(f"{line} --delete_head".split()) == 0
