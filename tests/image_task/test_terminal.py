"""What a terminal of 80 columns shows: the help, the lines of a run, the first sign of life."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import timm

from image_task import information, predict, visualize
from image_task.flags import COMMAND
from image_task.main import main
from image_task.models import export
from image_task.throughput import COMMAND as SPEED
from rmeeto import MergeConfig
from rmeeto.cli.command import EXAMPLES
from rmeeto.cli.interrupt import answer_interrupts
from rmeeto.errors import UserError
from video_task import predict as video_predict
from video_task import visualize as video_visualize
from video_task.flags import COMMAND as VIDEO
from video_task.throughput import COMMAND as VIDEO_SPEED

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize(
    "parser",
    [
        *(command.COMMAND.parser for command in (predict, visualize, video_predict, video_visualize)),
        information._parser,
    ],
    ids=["predict", "visualize", "video predict", "video visualize", "information"],
)
def test_the_help_of_a_small_command_fits(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, parser().format_help().splitlines())) <= 80


@pytest.mark.parametrize(
    ("work", "line"),
    [
        (
            "print('x', flush=True)",
            "the output, or a file, cannot be used: No space left on device; make room on the disk.",
        ),
        ("open('n' * 300)", f"{'n' * 300} cannot be used: File name too long; give a shorter name."),
        (
            "open('/dev/null/x')",
            "/dev/null/x cannot be used: Not a directory; give a file in a folder that can be used.",
        ),
    ],
)
def test_an_error_of_the_system_names_its_file_and_what_to_do(work, line):
    code = f"import sys; from rmeeto.cli.parser import run_small; sys.exit(run_small(lambda: {work}))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {line}\n")


def test_a_run_prints_at_most_80_columns_and_its_time(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = "--max_train_batches 2 --max_eval_batches 1 --epochs 1 --batch-size 4 --num_workers 0 --device cpu"
    assert main(f"{short} --accumulation 1 --model_ema True --num_prune 12".split()) == 0
    *lines, outcome = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert outcome.startswith("top-1 ") and outcome.endswith(": log/vim_nano_patch2_16-r12")
    assert any(line.startswith("time    0:") for line in lines)
    assert any("top-1" in line and "(ema)" in line for line in lines)


def test_the_sign_of_life_is_for_a_terminal_and_one_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    answer_interrupts()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for rank, said in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        answer_interrupts()
        assert ("starting" in capsys.readouterr().err) == said


def test_throughput_takes_the_names_of_main_and_says_what_its_r_is():
    options = SPEED.parse("--num_prune 5 --input_size 224 --device cpu".split())
    assert (options.r, options.img_size) == ([0, 5], 224)
    options = SPEED.parse("--r 11 5,5,6 5 0.1 --batch-size 2,4 --device cpu".split())
    assert options.r == [0, 0.1, 5, 11, (5, 5, 6)] and options.batch_size == [2, 4]


SHARED = [
    "--model vim_tiny_patch16_224",
    "--r 5",
    "--num-prune 5",
    "--r 5,5,5,5,5,5,5,5,5,5,6",
    "--r 0.1 --metric delta",
    "--r 5 --if_order False --merge_interval 2 --choose 3c",
    "--r 5 --keep_order True --rule adjacent",
    "--r 5 --prune --no_odd",
    "--merge_method none",
    "--input_size 224 --device cpu",
    "--img-size=224",
    "--batch-size 4",
    "--amp bf16",
]


@pytest.mark.parametrize("line", SHARED)
def test_a_flag_means_the_same_to_both_commands(line):
    config, _, _ = COMMAND.parse(
        [*line.split(), *(["--model", "vim_tiny_patch16_224"] if "--model" not in line else [])]
    )
    options = SPEED.parse([*line.split(), *([] if "--device" in line else ["--device", "cpu"])])
    if config.merge is None:
        assert options.merge is None and options.r == [0]
    elif "--r" in line or "--num" in line:
        assert options.r[1:] == [config.merge.r]
        assert replace(options.merge, r=config.merge.r) == config.merge
    assert options.img_size == config.data.input_size
    assert options.dtype == {"bf16": "bf16", "auto": "fp32"}[config.run.amp]
    assert "--batch" not in line or options.batch_size == [config.data.batch_size]


def test_a_folder_says_what_is_timed(tmp_path):
    model = timm.create_model("vim_nano_patch2_16", img_size=12, num_classes=3, merge=MergeConfig(r=3, metric="B"))
    export(model, tmp_path / "m")
    options = SPEED.parse(["--model_pth", str(tmp_path / "m"), "--device", "cpu"])
    assert (options.model, options.r, options.img_size) == ("vim_nano_patch2_16", [0, 3], 12)
    assert options.merge.metric == "B"
    options = SPEED.parse(["--model_pth", str(tmp_path / "m"), "--r", "4", "--metric", "X", "--device", "cpu"])
    assert options.r == [0, 4] and options.merge.metric == "X"
    weights = tmp_path / "m" / "model.safetensors"
    assert SPEED.parse(["--model_pth", str(weights), "--device", "cpu"]).model == "vim_nano_patch2_16"
    alone = weights.rename(tmp_path / "alone.safetensors")
    for path, said in ((alone, "does not say its model"), (tmp_path / "x", "does not exist")):
        with pytest.raises(UserError, match=said):
            SPEED.parse(["--model_pth", str(path), "--device", "cpu"])


@pytest.mark.parametrize("speed", [SPEED, VIDEO_SPEED], ids=["image", "video"])
def test_the_help_of_throughput_is_in_groups_with_an_example_each(speed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = speed.parser().format_help()
    assert max(map(len, shown.splitlines())) <= 80
    groups = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    examples = re.findall(r"for example (--[^\n]+)", shown)
    assert len(groups) >= 6 and len(examples) >= 4
    for example in examples[:3]:
        speed.parser().read(example.split())


# Started in a process of its own that a fork each tells apart: who prints first, or would import torch before.
FIRST = """
import os, runpy, sys

class Terminal:
    encoding, errors = "utf-8", "strict"
    isatty = lambda self: True
    flush = lambda self: None
    fileno = lambda self: 1
    def write(self, text):
        if text.strip():
            end("printed")
        return len(text)

class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "timm", "sklearn", "matplotlib.pyplot"):
            end(f"imports {name}")

def end(what):
    os.write(report, what.encode())
    os._exit(0)

sys.meta_path.insert(0, Heavy())
for module in sys.argv[1:]:
    for arguments in (["--help"], ["--no_such_flag"], ["nowhere", "--no_such_flag"]):
        reader, report = os.pipe()
        if not os.fork():
            os.environ.pop("RANK", None)
            sys.argv, sys.stdout, sys.stderr = [module, *arguments], Terminal(), Terminal()
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            finally:
                end(f"nothing: {sys.exc_info()[1]!r}")
        os.close(report)
        print(module, *arguments, os.read(reader, 200).decode(), sep="|")
        os.wait()
"""
IMAGES = ("", "main", "finetune", "throughput", "visualize", "predict", "export", "shards", "information", "quickstart")
CLIPS = ("", "main", "throughput", "visualize", "predict", "export", "quickstart", "views", "data.digits")
COMMANDS = [f"image_task.{name or '__main__'}" for name in (*IMAGES, "example.dense_prediction")]
COMMANDS += [f"video_task.{name or '__main__'}" for name in CLIPS]
COMMANDS += ["rmeeto.record", "rmeeto.doctor", "benchmarks.__main__", "exp_sh.collect"]


def test_every_command_prints_before_torch_is_imported(tmp_path):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    of_scripts = {target.partition(":")[0] for target in scripts.values()}
    named = {f"{target.partition('.')[0]}.{target.partition(':')[2]}" for target in scripts.values()}
    assert of_scripts <= set(COMMANDS) and named - {"rmeeto.command"} <= set(COMMANDS)
    done = subprocess.run(
        [sys.executable, "-c", FIRST, *COMMANDS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = [line.rpartition("|") for line in done.stdout.splitlines()]
    assert len(found) == 3 * len(COMMANDS), done.stderr
    assert [(command, what) for command, _, what in found if what != "printed"] == []
    assert not list(tmp_path.iterdir())
