"""The image command line, run for real on the embedded digits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from image_task.flags import parse
from image_task.main import build_model, main, run
from rmeeto.engine import checkpoint
from rmeeto.engine.dist import RankError
from rmeeto.engine.loop import Training
from tests import forked
from tests.engine.test_loop import same
from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[2]
SHORT = (
    "--device cpu --batch-size 16 --accumulation 1 --num_workers 0 --max_train_batches 2 --max_eval_batches 2 "
    "--epochs 1 --lr 1e-2"
)
MERGED = "--num_prune 12 --if_order"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own, with one thread."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights of a dense model that has not learnt anything."""
    path = tmp_path_factory.mktemp("weights") / "nano.pt"
    config, _, _ = parse(["--seed", "5"])
    torch.save({"model": build_model(config, None).state_dict()}, path)
    return path


def call(line: str) -> int:
    return main(line.split())


def result_of(folder: str) -> dict:
    return json.loads((Path(folder) / "result.json").read_text())


def lines_of(folder: str | Path) -> list[dict]:
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "process"} for line in lines]


def test_the_file_can_be_started_from_anywhere(tmp_path):
    """`python -m image_task.main` is what the tests below start."""
    command = [
        PYTHON,
        str(ROOT / "image_task" / "main.py"),
        "--dry-run",
        "--num_prune",
        "12",
        "--if_order",
    ]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stderr) == (0, "")
    assert json.loads(process.stdout)["merge"]["r"] == 12
    assert not list(tmp_path.iterdir())


def test_a_dry_run_touches_neither_data_nor_weights(capsys):
    line = "--data-set IMNET --data-path nowhere --model_pth nowhere.pth --model RMeeTo_base"
    assert call(f"--dry_run {line}") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(parse(line.split())[0].to_dict()))


def test_a_dry_run_leaves_alone_what_an_evaluation_does_not_read(capsys):
    assert call("--eval --data-set IMNET --aa foo --batch-size 15 --dry_run") == 0
    assert "--aa has no effect: --eval only evaluates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--num_prune 5 --merge_interval 6",
            "vim_nano_patch2_16: --r 5 has no effect: with --interval 6, --odd False",
        ),
        (
            "--num_prune 5 --merge_interval 24 --if_merge_odd",
            "none of its 6 blocks merges any of its 65 tokens",
        ),
        (
            "--num_prune 0 --final_tokens 300",
            "--r 0 has no effect: with --interval 2, --odd False, --final_tokens 300",
        ),
    ],
)
def test_a_setting_that_merges_nothing_is_an_error_that_names_the_model(line, message, capsys):
    assert call(f"{line} --if_order --dry_run") == call(f"{line} --if_order") == 2
    assert capsys.readouterr().err.count(message) == 2
    assert not Path("log").exists()


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("--num_prune 5 --compare 11", "the last merge leaves 60 tokens, not the 76 asked for"),
        ("--num_prune 5 --final_tokens 3", "the last merge leaves 31 tokens, not the 3 asked for"),
        ("--num_prune 5 --final_tokens 40", None),
        ("--num_prune 7 --r 5", "--r is the last of 2 flags for one setting, and counts"),
        ("--num_prune 5", None),
    ],
)
def test_what_has_another_effect_than_asked_for_is_noted(line, note, capsys):
    assert call(f"{line} --if_order --dry_run") == 0
    err = capsys.readouterr().err
    assert note in err if note else "note" not in err


def test_an_output_that_nobody_reads_is_no_error():
    """As after `... --dry_run | head -1`."""
    command = [PYTHON, "-m", "image_task.main", "--dry_run"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait() == 1


def test_retraining_fills_the_run_folder(weights, capsys):
    line = f"{SHORT} {MERGED} --distill True --model_pth {weights} --model_ema --smoothing 0.1 --line_every 0"
    assert call(line) == 0
    folder = Path("log/vim_nano_patch2_16-r12")
    assert {"config.json", "env.json", "log.jsonl", "last.pt", "best.pt", "result.json"} < {
        path.name for path in folder.iterdir()
    }
    assert parse(["--config", str(folder / "config.json")])[0] == parse(line.split())[0]
    result = result_of(folder)
    assert result["count"] == 32 and result["steps"] == 2 and {"top1", "ema", "best"} <= result.keys()
    printed, lines = capsys.readouterr()
    assert all(f"\n{loop} 1" in f"\n{lines}" for loop in ("epoch 1/1", "evaluating model", "evaluating ema")), lines
    for words in ("65 to 41 (r = 12)", "1437 images to train, 360 to evaluate", "1 x cpu, fp32", str(folder)):
        assert words in printed
    train = next(line for line in lines_of(folder) if line["event"] == "train")
    assert train["loss"] == pytest.approx(train["classification"] + 0.5 * train["distillation"])
    assert train["distillation"] > 0, "the student merges, the teacher does not"
    assert train["lr"] == pytest.approx(1e-2 * 16 / 512)


def test_evaluation_only_reports(weights, capsys):
    assert call(f"{SHORT} {MERGED} --eval --model_pth {weights} --line_every 0") == 0
    out, err = capsys.readouterr()
    assert "data    digits: 360 images to evaluate, 10 classes" in out and "\nevaluating 1\n" in err
    folder = "log/vim_nano_patch2_16-r12-nano-eval"
    result = result_of(folder)
    assert result["count"] == 32
    assert [line["event"] for line in lines_of(folder)] == ["eval"]
    assert not (Path(folder) / "last.pt").exists()


def test_an_evaluation_says_what_was_changed_to_make_the_weights_fit(weights, capsys):
    assert call(f"{SHORT} --input_size 24 --eval --max_eval_batches 1 --model_pth {weights}") == 0
    assert f"weights {weights} (pos_embed resized)" in capsys.readouterr().out


def test_run_returns_what_it_records(weights):
    config, _, _ = parse(f"{SHORT} {MERGED} --eval --model_pth {weights}".split())
    assert run(config) == result_of(config.folder)


def test_best_weights_evaluate_to_the_recorded_accuracy():
    assert call(f"{SHORT} --epochs 2 --name trained --max_eval_batches 0") == 0
    assert call(f"{SHORT} --eval --name again --model_pth log/trained/best.pt --max_eval_batches 0") == 0
    best, again = result_of("log/trained")["best"], result_of("log/again")
    assert again["count"] == 360
    assert all(best[key] == again[key] for key in again)


def test_a_finished_run_is_neither_repeated_nor_overwritten(capsys):
    assert call(SHORT) == 0
    before = {path: path.read_bytes() for path in Path("log").rglob("*") if path.is_file()}
    assert call(SHORT) == 2
    assert "holds a finished run; set --resume" in capsys.readouterr().err
    assert call(f"{SHORT} --resume") == 0
    assert "is done already" in capsys.readouterr().out
    assert call(f"{SHORT} --resume --lr 3e-2") == 2
    assert "--lr 0.01 there, 0.03 here" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("log").rglob("*") if path.is_file()} == before


def test_a_run_of_a_version_with_fewer_settings_goes_on_where_they_are_at_their_defaults(capsys):
    assert call(f"{SHORT} {MERGED}") == 0
    path = Path("log/vim_nano_patch2_16-r12/config.json")
    config = json.loads(path.read_text())
    del config["optim"]["elastic_r"], config["optim"]["accumulation"], config["merge"]["rule"]
    path.write_text(json.dumps(config))
    assert call(f"{SHORT} {MERGED} --resume") == 2  # --accumulation 1 is not the default
    assert "other settings: --accumulation 2 there, 1 here. Use" in capsys.readouterr().err
    path.write_text(json.dumps({**config, "optim": {**config["optim"], "accumulation": 1}}))
    assert call(f"{SHORT} {MERGED} --resume") == 0
    assert "is done already" in capsys.readouterr().out


def test_a_runs_config_runs_again(weights):
    call(f"{SHORT} {MERGED} --eval --model_pth {weights}")
    assert call("--config log/vim_nano_patch2_16-r12-nano-eval/config.json --name again") == 0
    assert result_of("log/again") == result_of("log/vim_nano_patch2_16-r12-nano-eval")


def test_smoke_runs_the_full_size_model(capsys):
    line = "--smoke --device cpu --model RMeeTo_tiny --num_prune 5 --if_order --distill True --accumulation 2 "
    line += "--data-set IMNET --data-path nowhere --model_pth nowhere.pth --model_ema"
    assert call(line) == 0
    assert "197 to 142 (r = 5) tokens, 224 pixels" in " ".join(capsys.readouterr().out.split())
    result = result_of("log/vim_tiny_patch16_224-r5-smoke")
    assert (result["count"], result["steps"]) == (4, 1)


def make_weights(kind: str, path: Path, good: Path) -> None:
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:5000])
    elif kind == "another model":
        torch.save({"model": {"conv1.weight": torch.zeros(3)}}, path)
    elif kind == "another head":
        config, _, _ = parse([])
        torch.save({"model": build_model(config, None, num_classes=7).state_dict()}, path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--bogus 3", "unknown flag --bogus"),
        ("--metric Q --num_prune 3", "--metric Q"),
        ("--num_prune 3 --choose 40c", "only 32 destinations"),
        ("--num_prune 3,3,3", "r lists 3 values"),
        ("--data-set IMNET --data-path nowhere", "nowhere"),
        ("--data-set IMNET --data-path .", "train"),
        ("--data-set Imaginette", "Imaginette"),
        ("--data-set Imaginette --dry_run", "Imaginette"),
        ("--data-set IMNET --aa foo --dry_run", "--aa is 'foo', which is no policy of timm"),
        ("--batch-size 15 --dry_run", "--batch_size 15, but mixup pairs"),
        ("--nb-classes 1000", "--nb_classes 1000, but digits has 10 classes"),
        ("--model_pth absent.pth", "absent.pth does not exist"),
        ("--model_pth truncated", "cannot be read"),
        ("--model_pth another_model", "does not fit"),
        ("--model_pth another_head", "head.weight (7, 32) for (10, 32)"),
        ("--batch-size 2000", "lower --batch-size"),
        ("--amp int8", "--amp int8; expected one of"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(line, message, weights, capsys):
    for kind in ("truncated", "another model", "another head"):
        make_weights(kind, Path(kind.replace(" ", "_")), weights)
    before = sorted(Path().rglob("*"))
    assert call(f"{line} --device cpu") == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if not line.startswith("note: ")]
    assert errors[0].startswith("error: ") and len(errors) <= 2
    assert message in "\n".join(errors)
    assert "Traceback" not in captured.err and captured.out == ""
    assert sorted(Path().rglob("*")) == before


def test_processes_beside_the_main_one_are_quiet_about_errors(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert call("--bogus") == 2
    assert "unknown flag" in capsys.readouterr().err, "a rank alone makes no second process"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call("--bogus") == 2
    assert capsys.readouterr().err == ""

    def fail(config):
        raise RankError("rank 1: the disk is gone")

    monkeypatch.setattr("image_task.main.TASK.run", fail)
    assert call("--num_prune 0") == 2
    assert capsys.readouterr().err == "error: rank 1: the disk is gone\n"


def out_of_gpu_memory(config):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")


@pytest.mark.parametrize(
    ("fill", "where"),
    [(out_of_gpu_memory, "GPU"), (lambda config: torch.empty(2**50), "machine")],
    ids=["gpu", "cpu"],
)
def test_a_full_memory_is_one_line(fill, where, monkeypatch, capsys):
    monkeypatch.setattr("image_task.main.TASK.run", fill)
    assert call("--num_prune 0") == 2
    assert capsys.readouterr().err == (
        f"error: the {where} has too little memory; lower --batch_size and raise --accumulation\n"
    )


def test_another_runtime_error_stays_a_traceback(monkeypatch):
    def fail(config):
        raise RuntimeError("a bug")

    monkeypatch.setattr("image_task.main.TASK.run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        call("--num_prune 0")


def test_an_interrupted_run_says_where_to_go_on(monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rmeeto.engine.loop.Training.evaluate_epoch", interrupt)
        assert call(f"{SHORT} --name a") == 130
        assert "interrupted before the first checkpoint" in capsys.readouterr().err
        assert call(f"{SHORT} --name b --checkpoint_every 1e-6") == 130
        assert "--resume goes on from log/b/last.pt" in capsys.readouterr().err
    for name in "ab":
        assert call(f"{SHORT} --name {name} --checkpoint_every 1e-6 --resume") == 0
    assert result_of("log/a") == result_of("log/b")


@pytest.mark.parametrize("module", ["image_task.main", "video_task.main"])
def test_an_interrupt_while_torch_is_imported_is_one_line(module, tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", module]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stdout) == (130, "")
    assert process.stderr == "interrupted\n"


def test_killed_and_resumed_is_uninterrupted_to_the_last_bit(weights, tmp_path):
    """SIGKILL in the middle of an epoch; drop path, mixup, teacher, average and accumulation are all on."""
    line = (
        f"{MERGED} --device cpu --model_pth {weights} --distill --model_ema --model_ema_decay 0.9 --accumulation 2 "
        "--batch-size 8 --max_train_batches 12 --max_eval_batches 3 --epochs 2 --lr 1e-1 --log_every 1"
    )
    step, held = Training.step, tmp_path / "held"

    def until_killed() -> int:
        def hold(training, *arguments):
            if training.at.step == 3:
                held.touch()
                time.sleep(1000)
            return step(training, *arguments)

        Training.step = hold  # of the forked process alone
        return call(f"{line} --name killed --num_workers 1 --checkpoint_every 1e-6")

    killed = forked.fork(until_killed)
    forked.until(held.exists)
    os.kill(killed, signal.SIGKILL)
    assert forked.wait([killed]) == [-signal.SIGKILL]
    position = checkpoint.load(tmp_path / "log" / "killed" / "last.pt")["position"]
    assert (position["epoch"], position["batch"]) == (0, 6)

    assert call(f"{line} --name killed --num_workers 0 --resume") == 0
    assert call(f"{line} --name whole --num_workers 0") == 0
    assert lines_of("log/killed") == lines_of("log/whole")
    assert result_of("log/killed") == result_of("log/whole")
    for name in ("last.pt", "best.pt"):
        killed, whole = (checkpoint.load(tmp_path / "log" / run / name) for run in ("killed", "whole"))
        assert same(killed, whole)


def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path, capfd):
    """The same images in every step, whoever reads them; sums in another order differ in the last digits."""
    line = (
        "--device cpu --num_prune 12 --if_order --no-augment --drop-path 0 --num_workers 0 --epochs 1 --lr 1e-2 "
        "--max_train_batches 3 --schedule cosine --weight-decay 0"
    )
    two = forked.run(2, lambda: call(f"{line} --name two --batch-size 8"))
    assert two == [0, 0] and len(re.findall("^model ", capfd.readouterr().out, re.MULTILINE)) == 1
    assert call(f"{line} --name one --batch-size 16") == 0
    one, both = result_of("log/one"), result_of("log/two")
    assert (one["top1"], one["top5"], one["count"]) == (both["top1"], both["top5"], both["count"])
    assert one["count"] == 360
    assert one["loss"] == pytest.approx(both["loss"], rel=1e-5)
    states = [checkpoint.load(tmp_path / "log" / name / "last.pt")["model"] for name in ("one", "two")]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=2e-5)
