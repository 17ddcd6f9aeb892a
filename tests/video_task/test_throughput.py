"""`python -m video_task.throughput`: clips, windows, and the decoder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("av")

from rmeeto.cli import throughput as core  # noqa: E402
from rmeeto.measure import Timing, benchmark  # noqa: E402
from tests.warm import PYTHON
from video_task import throughput  # noqa: E402
from video_task.throughput import main, measure_decoder, resolve  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NANO = ["--model", "videomamba_video_nano_patch4_32", "--device", "cpu"]


@pytest.fixture
def instant(monkeypatch):
    """Made-up times: a pass takes a second less for every model behind the first."""

    def timed(models, batch, **options):
        timed.calls.append((list(models), tuple(batch.shape)))
        return {name: Timing((10.0 - i,) * 5, len(batch)) for i, name in enumerate(models)}

    timed.calls = []
    monkeypatch.setattr(core, "benchmark", timed)
    return timed


def test_a_real_run_writes_table_json_and_plot(tmp_path, capsys, monkeypatch):
    quick = {"runs": 5, "warmup": 1, "min_seconds": 0}
    monkeypatch.setattr(core, "benchmark", lambda *a, **options: benchmark(*a, **{**options, **quick}))
    file = tmp_path / "speed.json"
    flags = [
        "--r",
        "40",
        "--window",
        "2,3,3",
        "--batch-size",
        "1",
        "--num_frames",
        "4",
        "--output",
        str(file),
    ]
    assert main([*NANO, *flags]) == 0
    printed = capsys.readouterr().out
    assert "clips/s" in printed and "* " in printed and "4 frames, 32 px" in printed
    rows = [line.split()[:3] for line in printed.splitlines() if line.strip().startswith("1 ")]
    assert rows == [["1", "0", "257"], ["1", "40", "177"], ["1", "40*", "177"]]
    assert all(len(line) <= 80 for line in printed.splitlines() if str(tmp_path) not in line)
    result = json.loads(file.read_text())
    assert result["command"] == ["python", "-m", "video_task.throughput", *NANO, *flags]
    assert result["input_size"] == [3, 4, 32, 32] and result["samples"] == "clips"
    dense, exact, local = result["results"]
    assert local["merge"]["window"] == [2, 3, 3] and exact["merge"]["window"] is None
    assert local["macs"]["full"] < exact["macs"]["full"] < dense["macs"]["full"]
    assert file.with_suffix(".png").stat().st_size > 1000


def test_it_starts_as_a_file_from_any_folder(tmp_path):
    command = [PYTHON, str(ROOT / "video_task" / "throughput.py"), "--help"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert "usage: python -m video_task.throughput" in finished.stdout


def test_every_setting_is_timed(instant, tmp_path):
    flags = ["--r", "8", "4", "--window", "2,3,3", "--batch_size", "3", "--output", str(tmp_path / "a.json")]
    assert main([*NANO, *flags]) == 0
    ((names, shape),) = instant.calls
    assert [name.split(", ", 1)[1] for name in names] == [
        "r = 0", "r = 4", "r = 8", "r = 4, window 2,3,3", "r = 8, window 2,3,3",
    ]  # fmt: skip
    assert shape == (3, 3, 8, 32, 32)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("tiny", "videomamba_video_tiny_patch16_224"),
        ("nano", "videomamba_video_nano_patch4_32"),
        ("videomamba_video_nano", "videomamba_video_nano_patch4_32"),
        ("videomamba_video_middle", "videomamba_video_middle_patch16_224"),
        ("videomamba_small", "videomamba_small"),
        ("R_MeeTo_tiny", "videomamba_R_MeeTo_tiny"),
    ],
)
def test_short_names_are_resolved(short, full):
    assert resolve(short) == full


def test_the_decoder_is_timed_on_given_files(instant, videos, tmp_path, capsys):
    files = [str(path) for path in sorted(videos.rglob("*.mp4"))[:2]]
    flags = ["--decode", *files, "--num_frames", "4", "--runs", "5", "--output", str(tmp_path / "a.json")]
    assert main([*NANO, *flags]) == 0
    assert "pyav: " in (printed := capsys.readouterr().out) and "4 frames from all over 2 video(s)" in printed
    decoding = json.loads((tmp_path / "a.json").read_text())["decoding"]
    assert decoding["clips_per_s"] > 0 and len(decoding["runs_ms"]) == 5 and not decoding["made_up"]


def test_the_decoder_is_timed_on_a_made_up_file(instant, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(throughput, "MADE_UP", (12, 64, 96))
    assert main([*NANO, "--decode", "--runs", "5", "--output", str(tmp_path / "a.json")]) == 0
    assert "a made-up video of 12 frames of 64 x 96" in capsys.readouterr().out
    decoding = json.loads((tmp_path / "a.json").read_text())["decoding"]
    assert (decoding["length"], decoding["num_frames"], decoding["made_up"]) == (12, 8, True)


def test_a_clip_a_second_is_what_it_says(monkeypatch, videos):
    clock = iter(range(100))
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: 2.0 * next(clock))
    files = [str(path) for path in sorted(videos.rglob("*.mp4"))[:3]]
    monkeypatch.setattr(throughput, "read_frames", lambda *a, **k: None)
    monkeypatch.setattr(throughput, "num_frames", lambda file: 10)
    assert measure_decoder(files, 4, runs=5)["clips_per_s"] == 3 / 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--window", "2,3"], "expected frames, rows and columns"),
        (["--window", "2,x"], "expected a number or numbers with commas"),
        (["--window", "1,1,1", "--r", "4"], "holds no token but the source"),
        (["--num_frames", "0"], "expected frames that fill whole tubelets"),
        (["--decode", "absent.mp4"], "--decode: absent.mp4"),
        (["--decoder", "torchcodec"], "--decoder has no effect without --decode"),
        (["--model", "vim_tiny"], "unknown --model vim_tiny; did you mean videomamba_tiny"),
    ],
)
def test_mistakes_are_one_error(flags, message, instant, capsys, tmp_path, monkeypatch):
    timed = []
    monkeypatch.setattr("rmeeto.cli.throughput._at", lambda *given: timed.append(given) or [])
    monkeypatch.chdir(tmp_path)
    assert main([*NANO, *flags]) == 2
    error = capsys.readouterr().err
    *notes, error = [part for part in error.splitlines() if part]
    assert error.startswith("error: ") and message in error and len(notes) <= 1
    assert "--decode" not in flags or not timed, "what was timed would be lost"
    assert not list(tmp_path.iterdir())
