"""The command that measures mutual information writes what it measured, and draws it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from image_task import information

WEIGHTS = Path(__file__).resolve().parents[2] / "image_task" / "exp_sh" / "digits" / "dense.safetensors"
MODEL = [
    "--model",
    "vim_nano_patch2_16",
    "--model_pth",
    str(WEIGHTS),
    "--device",
    "cpu",
    "--num_workers",
    "0",
]


def test_a_measurement_is_written_and_drawn(tmp_path, capsys):
    out = tmp_path / "information.json"
    argv = [
        *MODEL,
        "--blocks",
        "1",
        "4",
        "--parts",
        "mixer",
        "backward",
        "--estimators",
        "infonce",
        "--num_tokens",
        "3",
    ]
    argv += ["--samples", "320", "--steps", "3", "--seeds", "0", "1", "--output", str(out)]
    assert information.main(argv) == 0
    result = json.loads(out.read_text())
    assert result["samples"] == 320 and result["places"] == [[0, 32, 64]] * 2 and result["blocks"] == [1, 4]
    assert [row["part"] for row in result["results"]] == ["mixer", "backward"]
    nats = result["results"][0]["nats"]
    assert len(nats) == 2 and len(nats[0]) == 2 and len(nats[0][0]) == 3  # seeds, blocks, tokens
    with Image.open(out.with_suffix(".png")) as plot:
        assert plot.width > 800
    assert "mixer     infonce" in capsys.readouterr().out
    assert information.main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--blocks", "9"], "some of 0 to 5"),
        (["--steps", "0"], "steps 1 or more"),
        (["--samples", "50"], "fill a batch"),
    ],
)
def test_what_cannot_be_measured_is_refused(more, message, tmp_path, capsys):
    assert information.main([*MODEL, "--output", str(tmp_path / "x.json"), *more]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
