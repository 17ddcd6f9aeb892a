"""`python -m rmeeto.record`: runs compared in a table and a plot."""

from __future__ import annotations

import json

import pytest

from rmeeto.record import main


def write(folder, lr: float, top1: list[float]):
    folder.mkdir()
    config = {
        "optim": {"epochs": 3, "lr": lr, "betas": [0.9, 1 - lr]},
        "run": {"output_dir": "log", "name": folder.name},
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = []
    for epoch, value in enumerate(top1, 1):
        process = {"seconds": 10.0, "images_per_s": 50.0, "wait_s": 2.5}
        step = {"lr": lr, "grad_norm": 1.0, "tokens": 41.0, "process": {"left_s": 60.0 * (3 - epoch)}}
        lines.append({"event": "step", "epoch": epoch, "step": epoch, "loss": 2.0 / epoch, **step})
        lines.append({"event": "train", "epoch": epoch, "step": epoch, "loss": 2.0 / epoch, "process": process})
        for weights, more in (("model", 0), ("ema", 5)):
            shown = {"weights": weights, "top1": value + more, "loss": 1.5}
            lines.append({"event": "eval", "epoch": epoch, "step": epoch, **shown})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text + '{"event": "train", "ep')  # a run that is writing


def test_runs_are_rows_and_their_settings_are_compared(tmp_path, capsys):
    write(tmp_path / "first", 0.1, [50, 80, 70])
    write(tmp_path / "second", 0.2, [40])
    (tmp_path / "log.png").touch()
    plot = tmp_path / "runs.png"
    assert main([*map(str, (tmp_path / "first", tmp_path / "second")), "--plot", str(plot)]) == 0
    head, first, second, change, drawn = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "run",
        "epoch",
        "top-1",
        "best",
        "loss",
        "tokens",
        "images/s",
        "waits",
        "time",
        "left",
    ]
    assert first.split() == ["first", "3/3", "70.00", "80.00", "1.5000", "41", "50", "25%", "0:30", "0:00"]
    assert second.split() == ["second", "1/3", "40.00", "40.00", "1.5000", "41", "50", "25%", "0:10", "2:00"]
    assert len({len(line) for line in (head, first, second)}) == 1
    assert change == "second, from first: optim.lr 0.1 to 0.2; optim.betas [0.9, 0.9] to [0.9, 0.8]"
    assert drawn == f"drawn: {plot}" and plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("line", ["[]", "{}", '{"event": 3, "epoch": 1}', '{"event": "eval", "epoch": 1, "top1": "x"}'])
def test_lines_of_another_kind_are_left_out(tmp_path, line, capsys):
    write(tmp_path / "run", 0.1, [])
    (tmp_path / "run" / "log.jsonl").write_text(line + "\n")
    assert main([str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["run", *"---------"]


def test_what_is_no_run_or_no_picture_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no config.json" in capsys.readouterr().err
    write(tmp_path / "run", 0.1, [1])
    assert main([str(tmp_path / "run"), "--plot", str(tmp_path / "x.docx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "x.docx cannot be drawn to" in line
