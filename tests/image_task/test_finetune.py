"""The whole way on one's own pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from image_task.finetune import main
from image_task.models import load

MODEL = "--model vim_nano_patch2_16 --num_workers 0 --batch_size 4"


def make_pictures(folder: Path) -> Path:
    """Red, green and blue noise: four pictures a class to train, two to evaluate."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for channel, name in enumerate(("red", "green", "blue")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 80, (20, 24, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.mark.slow
def test_one_command_makes_a_model_that_knows_its_classes_and_its_input(tmp_path):
    pictures, out = make_pictures(tmp_path / "photos"), tmp_path / "out"
    line = f"{MODEL} --r 12 --epochs 2 --retrain_epochs 1 --input_size 12"
    assert main([str(pictures), *line.split(), "--output_dir", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert {"dense", "training_free", "retrained", "merged_images_per_s", "seconds"} <= summary.keys()
    assert (out / "merged.png").stat().st_size > 0

    described = json.loads((out / "model" / "config.json").read_text())
    assert described["label_names"] == summary["classes"] == ["blue", "green", "red"]
    cfg = described["pretrained_cfg"]
    assert cfg["input_size"] == [3, 12, 12] and cfg["crop_pct"] == 1.0
    assert cfg["mean"] == pytest.approx((0.485, 0.456, 0.406)) and cfg["std"] == pytest.approx(
        (0.229, 0.224, 0.225)
    )
    model = load(out / "model").eval()
    assert model.num_tokens == summary["token_counts"] and model.num_tokens[-1] < model.num_tokens[0]
    of_timm = timm.create_model(f"local-dir:{out / 'model'}", pretrained=True).eval()
    image = torch.randn(1, 3, 12, 12)
    assert torch.equal(model(image), of_timm(image)) and model(image).shape == (1, 3)


def test_mistakes_are_one_line_and_leave_nothing(tmp_path, capsys):
    line = f"{MODEL} --r 12 --output_dir {tmp_path / 'out'}".split()
    assert main([str(tmp_path / "nowhere"), *line]) == 2
    assert "is no folder; give the one that holds folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "dense").mkdir(parents=True)
    assert main([str(tmp_path), *line]) == 2
    assert "is not empty; give another" in capsys.readouterr().err
