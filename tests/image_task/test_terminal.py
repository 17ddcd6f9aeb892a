"""What a terminal of 80 columns shows: the help, the lines of a run, the first sign of life."""

from __future__ import annotations

import sys

import pytest

from image_task.flags import COMMAND
from image_task.main import main
from image_task.throughput import COMMAND as SPEED
from rmeeto.cli.command import EXAMPLES
from rmeeto.cli.interrupt import answer_interrupts
from rmeeto.errors import UserError
from video_task.flags import COMMAND as VIDEO


@pytest.mark.parametrize("command", [COMMAND, VIDEO], ids=["image", "video"])
def test_the_help_has_examples_that_are_read(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = command.parser().format_help().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"usage: {command.prog} [--flag value ...]"
    shown = "\n".join(lines)
    for example in EXAMPLES.values():
        words = example.format(model=next(iter(command.models))).split()
        assert f"for example {words[0]}" in shown
        command.parser().read(words)


def test_a_run_prints_at_most_80_columns_and_its_time(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = (
        "--max_train_batches 2 --max_eval_batches 1 --epochs 1 --batch-size 4 --num_workers 0 --device cpu"
    )
    assert main(f"{short} --accumulation 1 --model_ema True --num_prune 12".split()) == 0
    *lines, outcome = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert outcome.startswith("top-1 ") and outcome.endswith(": log/vim_nano_patch2_16-r12")
    assert any(line.startswith("time    0:") for line in lines)
    assert any("top-1" in line and "(ema)" in line for line in lines)


def test_the_first_line_comes_before_torch_and_only_to_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    answer_interrupts()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for flag, said in (("--eval", True), ("--help", False), ("--dry_run", False)):
        monkeypatch.setattr(sys, "argv", ["main", flag])
        answer_interrupts()
        assert ("starting" in capsys.readouterr().err) == said


def test_throughput_takes_the_names_of_main_and_says_what_its_r_is():
    options = SPEED.parse("--num_prune 5 --input_size 224 --device cpu".split())
    assert (options.r, options.img_size) == ([0, 5], 224)
    with pytest.raises(UserError, match="with spaces between: 5 11"):
        SPEED.parse(["--r", "5,11"])
