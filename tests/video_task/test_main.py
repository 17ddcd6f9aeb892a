"""The video command line, run for real on small video files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("av")

from rmeeto.engine import checkpoint  # noqa: E402
from tests import forked  # noqa: E402
from tests.engine.test_loop import same  # noqa: E402
from tests.warm import PYTHON
from video_task.flags import parse  # noqa: E402
from video_task.main import build_model, main, run  # noqa: E402
from video_task.views import merge_views  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MODEL = "--model videomamba_video_nano_patch4_32 --num_frames 4 --num_workers 0 --device cpu"
SHORT = f"{MODEL} --batch_size 2 --max_train_batches 2 --epochs 1 --warmup_epochs 0 --lr 1e-2"
VIEWS = "--test_num_segment 2 --test_num_crop 3 --short_side_size 32"
MERGED = "--num_prune 40"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every test runs in a folder of its own, with one thread."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def clips(videos) -> str:
    """The flags of a data set of 16 + 6 videos of two classes."""
    return f"--data_set folder --data_path {videos}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights of a dense model that has not learnt anything."""
    path = tmp_path_factory.mktemp("weights") / "nano.pt"
    model = build_model(parse(f"{MODEL} --seed 5".split())[0], None, num_classes=2)
    torch.save({"model": model.state_dict()}, path)
    return path


def call(line: str) -> int:
    return main(line.split())


def result_of(folder: str) -> dict:
    return json.loads((Path(folder) / "result.json").read_text())


def lines_of(folder: str | Path) -> list[dict]:
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "process"} for line in lines]


def test_the_file_can_be_started_from_anywhere(tmp_path):
    command = [PYTHON, str(ROOT / "video_task" / "main.py"), "--dry-run", "--num_prune", "88"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stderr) == (0, "")
    assert json.loads(process.stdout)["merge"]["r"] == 88
    assert not list(tmp_path.iterdir())


def test_retraining_fills_the_run_folder(weights, clips, capsys):
    line = f"{SHORT} {VIEWS} {MERGED} {clips} --model_pth {weights} --update_freq 2 --distill True --use_checkpoint "
    line += "--line_every 0"
    assert call(line) == 0
    folder = Path("log/videomamba_video_nano_patch4_32-r40-folder-4f")
    assert {"config.json", "env.json", "log.jsonl", "last.pt", "best.pt", "result.json", "views"} < {
        path.name for path in folder.iterdir()
    }
    assert parse(["--config", str(folder / "config.json")])[0] == parse(line.split())[0]
    result = result_of(str(folder))
    assert (result["count"], result["unreadable"], result["epochs"], result["steps"]) == (6, 0, 1, 1)
    assert {"top1", "best"} <= result["validation"].keys()
    out, err = capsys.readouterr()
    assert all(f"\n{loop}" in f"\n{err}" for loop in ("epoch 1/1 2/2", "evaluating model 1", "testing 1")), err
    printed = " ".join(out.split())
    for words in (
        "257 to 177 (r = 40) tokens, 4 frames of 32 pixels",
        "16 videos to train, 6 to validate, 6 to test on 6 views, 2 classes",
        "1 epoch, rate 0.00031",  # 1e-2 x 2 clips x 2 augmentations x 2 micro-batches / 256
        "(6 videos)",
    ):
        assert words in printed
    events = {line["event"]: line for line in lines_of(folder)}
    assert events["train"]["lr"] == pytest.approx(1e-2 * 8 / 256)
    assert events["train"]["loss"] == pytest.approx(
        events["train"]["classification"] + 0.5 * events["train"]["distillation"]
    )
    assert events["train"]["distillation"] > 0, "the student merges, the teacher does not"
    assert (events["test"]["epoch"], events["test"]["step"]) == (1, 1)


def test_a_test_is_the_same_from_its_files_and_for_two_processes(weights, clips, tmp_path, capsys):
    line = f"{MODEL} {VIEWS} {MERGED} {clips} --eval --model_pth {weights} --batch_size 5 --num_sample 2"
    assert call(f"{line} --name one") == 0
    assert "data    folder: 6 videos to test on 6 views, 2 classes" in capsys.readouterr().out
    assert forked.run(2, lambda: call(f"{line} --name two")) == [0, 0]
    one, both = result_of("log/one"), result_of("log/two")
    assert one["count"] == 6
    files = sorted(Path("log/two/views").iterdir())
    assert [file.name for file in files] == ["rank0.npz", "rank1.npz"]
    for other in (both, merge_views(files), merge_views(["log/one/views/rank0.npz"])):
        assert {**other, "loss": pytest.approx(one["loss"], rel=1e-5)} == {**one, "loss": other["loss"]}
    assert [line["event"] for line in lines_of("log/one")] == ["test"]


def test_an_unreadable_video_counts_as_wrong(weights, clips, videos, capsys):
    path = videos / "val" / "ant" / "1.mp4"
    path.write_bytes(path.read_bytes()[:100])
    assert call(f"{MODEL} {VIEWS} {clips} --eval --model_pth {weights} --name damaged") == 0
    result = result_of("log/damaged")
    assert (result["count"], result["unreadable"]) == (6, 1)
    assert "1 unreadable counted as wrong" in capsys.readouterr().out


def test_the_best_epoch_is_tested_on_request(clips):
    line = f"{SHORT} {VIEWS} {clips} --epochs 3"
    assert call(f"{line} --name last") == 0
    assert call(f"{line} --name best --test_best") == 0
    last, best = result_of("log/last"), result_of("log/best")
    assert last["validation"] == best["validation"]
    again = f"{MODEL} {VIEWS} {clips} --batch_size 2 --eval --name again --model_pth log/best/"
    for result, file in ((last, "last.pt"), (best, "best.pt")):
        assert call(f"{again}{file} --name {file}") == 0
        assert {key: result[key] for key in result_of(f"log/{file}")} == result_of(f"log/{file}")


def test_interrupted_and_resumed_is_uninterrupted_to_the_last_bit(weights, clips, monkeypatch, capsys):
    """The power fails in the middle of an epoch, and after the training; drop path and accumulation are on."""
    line = (
        f"{SHORT} {VIEWS} {MERGED} {clips} --model_pth {weights} --epochs 2 --warmup_epochs 1 --max_train_batches 4 "
        "--update_freq 2 --log_every 1 --checkpoint_every 1e-6 --drop_path 0.3"
    )
    assert call(f"{line} --name whole") == 0

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rmeeto.engine.loop.Training.evaluate_epoch", interrupt)
        assert call(f"{line} --name cut") == 130
    with monkeypatch.context() as patch:
        patch.setattr("video_task.main.evaluate_views", interrupt)
        assert call(f"{line} --name cut --resume") == 130
    assert "--resume goes on from log/cut/last.pt" in capsys.readouterr().err
    assert call(f"{line} --name cut --resume") == 0
    assert lines_of("log/cut") == lines_of("log/whole")
    assert result_of("log/cut") == result_of("log/whole")
    cut, whole = (checkpoint.load(Path("log", name, "last.pt")) for name in ("cut", "whole"))
    assert same(cut, whole)
    assert call(f"{line} --name cut --resume") == 0
    assert "is done already" in capsys.readouterr().out


def test_an_image_models_weights_start_a_training_but_not_a_test(clips, tmp_path, capsys):
    state = build_model(parse(MODEL.split())[0], None, num_classes=5).state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].squeeze(2)
    del state["temporal_pos_embedding"]
    torch.save({"model": state}, "image.pth")
    assert call(f"{SHORT} {VIEWS} {clips} --model_pth image.pth --max_train_batches 1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "image.pth (patch_embed.proj.weight resized, temporal_pos_embedding new, head" in said
    assert call(f"{MODEL} {VIEWS} {clips} --model_pth image.pth --eval") == 2
    assert "image.pth brings no head for 2 classes, so there is nothing to test" in capsys.readouterr().err


def test_smoke_needs_no_data(capsys):
    line = f"--smoke --device cpu --num_prune 40 --update_freq 2 --num_frames 4 {VIEWS} --data_path nowhere"
    assert call(f"{line} --model_pth nowhere.pth") == 0
    folder = Path("log/videomamba_video_nano_patch4_32-r40-4f-smoke")
    assert result_of(str(folder))["steps"] == 1
    assert json.loads((folder / "config.json").read_text())["data"]["data_path"] == ""
    assert len(lines_of(folder)) == 3


def test_a_dry_run_refuses_a_decoder_that_does_not_load(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    assert call("--decoder torchcodec --dry_run") == 2
    assert "--decoder torchcodec does not load" in capsys.readouterr().err


def test_a_dry_run_leaves_alone_what_an_evaluation_does_not_read(capsys):
    assert call("--eval --aa foo --dry_run") == 0
    assert "--aa has no effect: --eval only evaluates" in capsys.readouterr().err
    assert call("--augment False --dry_run --data_path nowhere") == 0


def test_run_returns_what_it_records(weights, clips):
    config, _, _ = parse(f"{MODEL} {VIEWS} {clips} --eval --model_pth {weights}".split())
    assert run(config) == result_of(str(config.folder))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--bogus 3", "unknown flag --bogus"),
        ("--metric Q --num_prune 3", "--metric Q"),
        ("--num_prune 3,3,3", "r lists 3 values"),
        ("--num_prune 3 --choose 300c", "only 256 destinations"),
        ("--num_prune 3 --window 1,1,1", "holds no token but the source"),
        ("--tubelet_size 3", "expected frames that fill whole tubelets"),
        ("--data_set Imagenette --dry_run", "--data_set is 'Imagenette'; known are Kinetics"),
        ("--decoder foo --dry_run", "--decoder is 'foo'; expected one of pyav, torchcodec"),
        ("--aa foo --dry_run", "--aa is 'foo', which is no policy of timm"),
        ("--short_side_size 16 --dry_run", "--short_side_size is 16"),
        ("--eval", "--data_path is not given; give the folder that holds Kinetics_sparse"),
        ("--data_path nowhere", "no folder; give the one that holds the lists"),
        ("{clips} --batch_size 2 --nb_classes 400", "--nb_classes 400, but folder has 2 classes"),
        ("{clips} --batch_size 2 --model_pth absent.pth", "absent.pth does not exist"),
        (
            "{clips} --batch_size 2 --model_pth {weights} --head_map absent.json",
            "--head_map absent.json cannot be read",
        ),
        ("{clips} --model_pth {weights} --delete_head --eval", "--delete_head leaves no head to evaluate"),
        ("{clips} --batch_size 40", "lower --batch_size"),
        ("{clips} --batch_size 2 --short_side_size 16", "--short_side_size is 16"),
        ("{clips} --decoder vlc", "vlc"),
        ("--amp int8", "--amp int8; expected one of"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(line, message, weights, clips, capsys):
    before = sorted(Path().rglob("*"))
    assert call(line.format(clips=clips, weights=weights) + " --device cpu --num_workers 0") == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if not line.startswith("note: ")]
    assert errors[0].startswith("error: ") and len(errors) <= 2
    assert message in "\n".join(errors)
    assert captured.out == ""
    assert sorted(Path().rglob("*")) == before
