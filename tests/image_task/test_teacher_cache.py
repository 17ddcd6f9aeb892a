"""`--teacher cache`: the runs of a sweep share one teacher's answers, batches that are mixed among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from image_task.flags import parse
from image_task.main import build_model, main

SHORT = (
    "--device cpu --batch-size 16 --accumulation 1 --num_workers 0 --max_train_batches 4 --max_eval_batches 1 "
    "--epochs 2 --lr 1e-3 --log_every 1 --distill --num_prune 4"
)


@pytest.fixture
def line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _, _ = parse(["--seed", "5"])
    torch.save({"model": build_model(config, None).state_dict()}, "dense.pt")
    return f"{SHORT} --model_pth dense.pt"


def losses(name: str) -> list[tuple[float, float]]:
    lines = map(json.loads, open(f"log/{name}/log.jsonl"))
    return [(line["loss"], line["distillation"]) for line in lines if line["event"] == "step"]


def test_runs_of_a_sweep_skip_the_teacher(line, capsys):
    """Mixup, cutmix, erasing and repeated augmentation are on: a mixed batch is a function of its place, too."""
    assert main(f"{line} --name live".split()) == 0
    assert main(f"{line} --name first --teacher cache".split()) == 0
    assert "teacher 0 of 8 micro-batches were answered by log/teacher-cache" in capsys.readouterr().out
    assert losses("live") == losses("first")  # of ten classes all are kept
    assert main(f"{line} --name again --teacher cache".split()) == 0
    assert "teacher 8 of 8" in capsys.readouterr().out
    assert losses("again") == losses("live")
    other = line.replace("--num_prune 4", "--num_prune 8").replace("--epochs 2", "--epochs 3")
    assert main(f"{other} --name other --teacher cache --drop_path 0 --smoothing 0".split()) == 0
    assert "teacher 8 of 12" in capsys.readouterr().out
    for changed, named in (
        ("--seed 1", "seed 0 there, 1 here"),
        ("--mixup 0.4", "--mixup 0.8 there, 0.4 here"),
        ("--batch-size 8", "--batch_size 16 there, 8 here"),
        ("--accumulation 2", "micro_batches_of_a_step 1 there, 2 here"),
        ("--teacher_pth other.pt", "teacher.weights"),
    ):
        torch.save({"model": build_model(parse(["--seed", "6"])[0], None).state_dict()}, "other.pt")
        assert main(f"{line} --name x --teacher_cache log/teacher-cache {changed}".split()) == 2
        (error,) = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
        assert "holds a teacher's answers to something else" in error and named in error
        assert "give another --teacher_cache" in error
        assert not Path("log/x").exists()


def test_it_has_no_effect_without_a_teacher(line, capsys):
    without = line.replace("--distill", "")
    assert main(f"{without} --teacher cache".split()) == 2
    assert "--teacher has no effect" in capsys.readouterr().err
    assert main(f"{line} --teacher_top 3".split()) == 2
    assert "--teacher_top has no effect" in capsys.readouterr().err
