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
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("vim_nano_patch2_16") and "blocks 1 4; 320 of " in lines[0]
    assert "images of digits" in lines[0] and lines[1].startswith("  mixer     infonce")
    for there, gone in ((".json", ".png"), (".png", ".json")):  # either file is kept
        out.with_suffix(there).write_text("mine")
        out.with_suffix(gone).unlink()
        assert information.main(argv) == 2
        assert f"information{there} is there already" in (error := capsys.readouterr().err) and "--overwrite" in error
        assert out.with_suffix(there).read_text() == "mine"
        out.with_suffix(gone).touch()


def test_how_far_it_is_is_said_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(information, "LINE_EVERY", 0)
    argv = [*MODEL, "--parts", "mixer", "--estimators", "infonce", "--num_tokens", "2", "--samples", "330"]
    argv += ["--steps", "2", "--seeds", "0", "1", "--output", str(tmp_path / "a" / "i.json")]
    for more, rounds in (([], 4), (["--per_token", "--overwrite"], 8)):
        assert information.main([*argv, *more]) == 0
        error = capsys.readouterr().err
        assert "mixer: image 330/330" in error and f"mixer infonce: step {rounds}/{rounds}" in error
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["i.json", "i.png"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--blocks", "9"], "some of 0 to 5"),
        (["--blocks", "3", "3"], "--blocks 3 3 names one of them twice; give each once"),
        (["--seeds", "1", "2", "1"], "--seeds 1 2 1 names one"),
        (["--steps", "0"], "--steps 0; expected 1 or more"),
        (["--num_tokens", "0"], "--num_tokens 0; expected 1 or more"),
        (
            ["--samples", "318"],
            "--samples 318: 318 images, of which a part is held out, do not fill a network's batch of 256",
        ),
        (["--max_eval_batches", "1"], "digits: 128 images, of which a part is held out, do not fill a network's batch"),
        (["--model", "vit_tiny_patch16_224", "--model_pth=", "--parts", "both"], "--parts both; this model has mixer"),
        (["--output", "/proc/a/b.json"], "/proc/a/b.json cannot be written: No such file or directory; give a file"),
        (["--output", "FILE/b.json"], "cannot be written: Not a directory; give a file"),
        (["--output", f"{'n' * 250}.json"], "cannot be written: File name too long; give a shorter name"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_it_begins(more, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(information, "capture", None)
    more = [word.replace("FILE", __file__) for word in more]
    model = MODEL if "--model_pth=" not in more else MODEL[4:]
    more = [word for word in more if word != "--model_pth="]
    assert information.main([*model, "--output", str(tmp_path / "x.json"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_name_in_use_as_a_folder_is_refused(tmp_path, capsys):
    (tmp_path / "x.json").mkdir()
    assert information.main([*MODEL, "--output", str(tmp_path / "x.json"), "--overwrite"]) == 2
    assert "x.json is a folder; expected a file's name" in capsys.readouterr().err
