"""The defaults follow what is asked, and what cannot train is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from image_task.config import Config
from image_task.flags import COMMAND, NEW_HEAD, UNTRAINED, parse
from rmeeto.cli.advice import epoch_line, reading_notes, size_notes, summary, training_notes
from rmeeto.engine.optim import OptimConfig, build_optimizer


def config_of(line: str) -> Config:
    return parse(line.split())[0]


def data_of(num_train: int, config: Config) -> SimpleNamespace:
    return SimpleNamespace(num_train=num_train, batches_per_epoch=num_train // config.data.batch_size)


@pytest.mark.parametrize("line", ["", "--merge_method none"])
def test_weights_from_scratch_get_settings_that_train(line):
    assert config_of(line).optim == replace(OptimConfig(), **UNTRAINED)


def test_clips_have_theirs():
    pytest.importorskip("av")
    from video_task import flags

    scratch, head, trained = (
        flags.parse(line.split())[0].optim for line in ("", "--model_pth P --delete_head", "--model_pth P")
    )
    assert scratch == replace(trained, **flags.UNTRAINED) and head == replace(trained, **flags.NEW_HEAD)
    assert trained == flags.VideoConfig().optim and flags.parse(["--epochs", "2"])[0].optim.warmup_epochs == 0
    assert any(
        "--lr 1e-05 re-trains" in note
        for note in training_notes(
            flags.parse("--lr 1e-5".split())[0], SimpleNamespace(num_train=960, batches_per_epoch=60), flags.UNTRAINED
        )
    )


def test_a_new_head_gets_a_rate_of_its_own():
    optim = config_of("--model_pth P --delete_head").optim
    assert optim == replace(OptimConfig(), **NEW_HEAD)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    model.get_classifier = lambda: model[1]
    body, head = build_optimizer(model, optim).param_groups
    assert [p.shape[0] for p in head["params"]] == [3, 3] and head["lr_scale"] == 20
    assert len(body["params"]) == 2 and body["lr_scale"] == 1
    slow = [{"params": [model[0].weight], "lr_scale": 0.5}, {"params": [model[1].weight], "lr_scale": 0.5}]
    assert [g["lr_scale"] for g in build_optimizer(model, optim, slow).param_groups] == [0.5, 10]
    assert len(build_optimizer(model, replace(optim, head_lr_scale=1.0)).param_groups) == 1


@pytest.mark.parametrize(
    "line",
    [
        "--model_pth P",
        "--pretrained auto --model vim_tiny_patch16_224",
        "--eval",
        "--model RMeeTo_tiny --data-path D",
    ],
)
def test_a_retraining_and_the_released_names_keep_the_papers(line):
    assert config_of(line).optim == OptimConfig()


def test_what_is_written_counts():
    written = config_of("--lr 3e-3 --epochs 8 --accumulation 2 --schedule released --batch_size 32").optim
    assert written == OptimConfig(lr=3e-3, epochs=8, warmup_epochs=2, accumulation=2, schedule="released")
    assert config_of("--epochs 1").optim.warmup_epochs == 0
    assert config_of("--smoke").optim == replace(OptimConfig(), epochs=1)


def test_an_epoch_is_said():
    config = config_of("--batch_size 16")
    assert epoch_line(config, data_of(180, config), 1, "images") == (
        "11 optimizer steps of 16 images an epoch, 4 of 180 dropped"
    )
    config = config_of("--accumulation 2 --batch_size 90")
    assert epoch_line(config, data_of(180, config), 1, "images") == (
        "1 optimizer step of 180 images an epoch, none dropped"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--batch_size 16", []),
        ("--model_pth P --accumulation 1 --epochs 10", []),
        ("--epochs 2", ["2 optimizer steps in all"]),
        ("--accumulation 2", ["--accumulation 2 is never filled: an epoch has 1"]),
        ("--lr 1e-6 --model_pth P --delete_head", ["a new head would need"]),
        ("--lr 2e-5", ["weights from scratch would need"]),
        ("--teacher_pth P --distill", ["the student starts from random weights"]),
        ("--smoke --epochs 2", []),
    ],
)
def test_what_cannot_train_is_said(line, expected):
    config = config_of(line)
    notes = training_notes(config, data_of(180, config), COMMAND.defaults_for(config.model))
    assert len(notes) == len(expected)
    assert all(words in note for words, note in zip(expected, notes))


def test_an_accuracy_that_means_little_is_said(tmp_path):
    (tmp_path / "config.json").write_text('{"data": {"input_size": 32}}')
    three, one = SimpleNamespace(num_classes=3), SimpleNamespace(num_classes=1)
    assert reading_notes(config_of("--eval --model_pth P"), three, "P") == []
    assert "are random" in reading_notes(config_of("--eval"), three, "drawn from seed 0")[0]
    assert "every answer is right" in reading_notes(config_of(""), one, "drawn from seed 0")[0]
    config = config_of(f"--eval --model_pth {tmp_path / 'best.pt'}")
    assert reading_notes(config, three, "P (pos_embed resized)") == [
        "the weights were trained at another input size, --input_size 32"
    ]
    assert size_notes(32, 2, 2) == []
    assert "the last 1 row and columns are never seen" in size_notes(33, 2, 2)[0]


def test_the_outcome_names_the_best_epoch_and_no_top_5_of_three():
    result = {"top1": 80.0, "top5": 100.0, "loss": 0.5, "count": 60, "unreadable": 0}
    best = {"best": {"top1": 90.0, "epoch": 4}}
    assert summary(result, Path("log/a"), "images", 3) == "top-1 80.00  loss 0.5000 (60 images): log/a"
    assert "top-5 100.00" in summary(result, Path("log/a"), "images", 10)
    assert summary(result | best, Path("log/a"), "images", 3).endswith("90.00 after epoch 4: best.pt")
