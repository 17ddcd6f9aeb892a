"""`python -m image_task.throughput`: names, table, files, and what it refuses."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from image_task.flags import parse as parse_training
from image_task.models import MODELS
from image_task.throughput import draw, main, parse, resolve
from rmeeto.cli import throughput
from rmeeto.measure import Timing, benchmark
from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[2]
NANO = ["--model", "vim_nano_patch2_16", "--device", "cpu"]


@pytest.fixture
def instant(monkeypatch):
    """Made-up times: a pass takes a second less for every model behind the first."""

    def timed(models, batch, **options):
        timed.calls.append((list(models), tuple(batch.shape), options))
        seconds = [10.0 - i for i in range(len(models))]
        return {
            name: Timing((s,) * 5, len(batch), merging_share=0.1, merging_spread=0.02)
            for name, s in zip(models, seconds)
        }

    timed.calls = []
    monkeypatch.setattr(throughput, "benchmark", timed)
    return timed


def test_a_real_run_writes_table_json_and_plot(tmp_path, capsys, monkeypatch):
    quick = {"runs": 5, "warmup": 1, "min_seconds": 0}
    monkeypatch.setattr(throughput, "benchmark", lambda *a, **options: benchmark(*a, **{**options, **quick}))
    file = tmp_path / "deep" / "speed.json"
    assert main([*NANO, "--r", "0", "4", "--batch-size", "2", "--output", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if line.strip().startswith(("2 ", "batch "))]
    assert table[0][:3] == ["batch", "r", "tokens"]
    assert [row[:3] for row in table[1:]] == [["2", "0", "65"], ["2", "4", "57"]]
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)

    result = json.loads(file.read_text())
    assert {"commit", "device", "torch", "dtype", "command", "threads"} <= set(result)
    dense, merged = result["results"]
    assert dense["r"] == 0 and dense["merge"] is None and dense["merging_share"] is None
    assert merged["merge"]["r"] == 4 and merged["tokens"] == [65, 65, 61, 61, 57, 57]
    assert merged["merging_share_measured"] < 1 and len(merged["runs_ms"]) == 5
    assert dense["speed_up"] == 1 and merged["theory"] == dense["macs"]["full"] / merged["macs"]["full"]
    assert file.with_suffix(".png").stat().st_size > 1000


def test_started_as_a_file_from_any_folder_it_records_a_command_that_repeats_it(tmp_path):
    flags = [*NANO, "--r", "0", "--batch-size", "1", "--runs", "5", "--output", "a.json"]
    command = [PYTHON, str(ROOT / "image_task" / "throughput.py"), *flags]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    recorded = json.loads((tmp_path / "a.json").read_text())["command"]
    assert recorded == ["python", "-m", "image_task.throughput", *flags]


def test_a_schedule_is_fitted_to_a_target(instant, monkeypatch, tmp_path, capsys):
    """Chosen, measured beside the dense model, and said as flags that the training command takes."""

    def chosen(model, size, device, *, batch_size, runs, target_latency):
        assert model.merge_config.metric == "B" and (size, batch_size, target_latency) == (
            (3, 16, 16),
            8,
            0.02,
        )
        return replace(model.merge_config, r=(0, 31))

    monkeypatch.setattr("rmeeto.cli.target.fit_schedule", chosen)
    file = tmp_path / "speed.json"
    assert main([*NANO, "--target", "20ms", "--metric", "B", "--output", str(file)]) == 0
    names = [name.partition(", ")[2] for name in instant.calls[0][0]]
    assert names == ["r = 0", "fitted"] and len(instant.calls) == 1
    out = capsys.readouterr().out
    assert "20ms asked for: 1.11x, 9000.00 ms measured" in out and "merging block: 0 31" in out
    flags = out.split("re-train: python -m image_task.main ")[1].splitlines()[0].split()
    result = json.loads(file.read_text())
    assert flags == result["retrain"] and result["results"][1]["r"] == [0, 31]
    merge = parse_training([*flags, "--data_set", "DIGITS"])[0].merge
    assert merge.r == (0, 31) and merge.metric == "B"


@pytest.mark.parametrize(("share", "spread"), [(-0.04, 0.01), (-0.04, 0.06), (0.02, 0.03), (0.0, 0.0)])
def test_a_share_within_the_noise_is_no_finding(share, spread, monkeypatch, tmp_path, capsys):
    measured = {"merging_share": share, "merging_spread": spread}
    monkeypatch.setattr(
        throughput,
        "benchmark",
        lambda models, batch, **_: {name: Timing((1.0,) * 5, len(batch), **measured) for name in models},
    )
    file = tmp_path / "a.json"
    assert main([*NANO, "--r", "4", "--batch-size", "1", "--output", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "<noise" in printed and "±" not in printed
    assert "merging takes less time than the runs scatter" in printed
    row = json.loads(file.read_text())["results"][1]
    assert row["merging_share"] is None and "within the noise" in row["merging_note"]
    assert (row["merging_share_measured"], row["merging_spread"]) == (share, spread)


def test_a_share_above_the_noise_is_printed(instant, tmp_path, capsys):
    file = tmp_path / "a.json"
    assert main([*NANO, "--r", "4", "--batch-size", "1", "--output", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "10±2%" in printed and "<noise" not in printed
    row = json.loads(file.read_text())["results"][1]
    assert row["merging_share"] == row["merging_share_measured"] == 0.1 and "merging_note" not in row


def test_the_legend_holds_for_every_model(instant, tmp_path, capsys):
    flags = ["--r", "0", "--batch-size", "1", "--device", "cpu", "--output", str(tmp_path / "a.json")]
    assert main(["--model", "deit_tiny", *flags]) == 0
    printed = capsys.readouterr().out
    assert "directions" not in printed and "GMACs    a sample" in printed


def test_every_model_and_batch_is_timed_as_asked(instant, tmp_path):
    flags = ["--r", "8", "4", "--batch_size", "3", "5", "--dtype", "bf16", "--compile", "--runs", "7"]
    assert main([*NANO, *flags, "--output", str(tmp_path / "a.json")]) == 0
    assert [shape for _, shape, _ in instant.calls] == [(3, 3, 16, 16), (5, 3, 16, 16)]
    names, _, options = instant.calls[0]
    assert [name.split(", ")[1] for name in names] == [
        "r = 0",
        "r = 4",
        "r = 8",
    ]  # dense is always there, and first
    assert options["dtype"] == torch.bfloat16 and options["compile"] and options["runs"] == 7
    assert not options["cuda_graph"] and not options["by_samples"] and options["merging"]
    result = json.loads((tmp_path / "a.json").read_text())
    assert [row["speed_up"] for row in result["results"][:3]] == [1, 10 / 9, 10 / 8]


def test_img_size_is_the_models(instant, tmp_path):
    assert main([*NANO, "--img-size", "24", "--batch-size", "1", "--output", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["input_size"] == [3, 24, 24]


def test_files_are_not_replaced_silently(instant, tmp_path, capsys):
    output = ["--output", str(tmp_path / "a.json")]
    (tmp_path / "a.png").write_text("mine")
    assert main([*NANO, *output]) == 2
    assert not instant.calls and "a.png exists" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_text() == "mine"
    assert main([*NANO, *output, "--overwrite"]) == 0
    assert main([*NANO, *output]) == 2


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("nope/x/a.json", "No such file or directory"),
        ("file/a.json", "Not a directory"),
        ("taken.json", "Is a directory"),
    ],
)
def test_a_file_that_cannot_be_written_is_said_before_anything_is_timed(
    output, reason, instant, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "taken.json").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main([*NANO, "--output", output, "--overwrite"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and len(captured.err.splitlines()) == 1
    assert output in captured.err and reason in captured.err
    assert not instant.calls and not captured.out and sorted(tmp_path.rglob("*")) == before


def test_the_last_folder_of_a_file_is_made_and_both_of_the_default(instant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = [*NANO, "--r", "0", "--batch-size", "1"]
    assert main([*quick, "--output", "new/a.json"]) == 0 and (tmp_path / "new" / "a.png").exists()
    assert main(quick) == 0 and len(list((tmp_path / "runs" / "throughput").iterdir())) == 2


def test_the_default_file_carries_the_conditions(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert str(parse([*NANO]).output) == "runs/throughput/vim_nano_patch2_16-fp32-cpu.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = parse(["--model", "vim_small", "--dtype", "bf16", "--compile", "--cuda-graph"])
    assert options.output.name == "vim_small_patch16_224-bf16-cuda-compiled-graphed.json"


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("vim_tiny", "vim_tiny_patch16_224"),
        ("vim_base", "vim_base_patch16_224"),
        ("videomamba_middle", "videomamba_middle_patch16_224"),
        ("deit_small", "rmeeto_deit_small_patch16_224"),
        ("deit_small_patch16_224", "rmeeto_deit_small_patch16_224"),
        ("vim_nano_patch2_16", "vim_nano_patch2_16"),
        ("vim_nano", "vim_nano_patch2_16"),
        ("rmeeto_deit_small", "rmeeto_deit_small_patch16_224"),
        ("vim_tiny_patch16_stride8_224", "vim_tiny_patch16_stride8_224"),
        ("RMeeTo_tiny", "RMeeTo_tiny"),
    ],
)
def test_short_names_are_resolved(short, full):
    assert resolve(short) == full


@pytest.mark.parametrize("name", MODELS)
def test_every_registered_name_is_its_own(name):
    assert resolve(name) == name


@pytest.mark.parametrize(
    ("flags", "got", "expected"),
    [
        (["--model", "vim_tiney"], "vim_tiney", "did you mean vim_tiny_patch16_224"),
        (["--model", "resnet18", "--output", "missing/a.json"], "resnet18", "timm's VisionTransformer"),
        ([*NANO, "--runs", "4"], "--runs 4", "expected 5 to"),
        ([*NANO, "--batch-size", "0"], "--batch_size (0,)", "expected 1 to"),
        ([*NANO, "--r", "-2", "--output", "missing/a.json"], "--r -2", "0 or more"),
        ([*NANO, "--r", "many"], "'many'", "a number or numbers with commas"),
        (
            [*NANO, "--r", "5,11,3", "--output", "missing/a.json"],
            "r lists 3 values",
            "--r 5 11 3 times 3 models",
        ),
        ([*NANO, "--dtype", "int8"], "--dtype int8", "bf16"),
        ([*NANO, "--amp", "on"], "'on'", "off, auto, bf16, fp16"),
        ([*NANO, "--batchsize", "2"], "--batchsize", "did you mean --batch_size?"),
        ([*NANO, "--merge_method", "none", "--r", "4"], "--r has no effect", "leave it out"),
        ([*NANO, "--cuda-graph"], "on cpu", "leave the flag out"),
        ([*NANO, "--output", "speed.csv"], "speed.csv", ".json"),
        ([*NANO, "--target", "fast"], "--target", "1.3x, or a batch's latency, 20ms"),
        ([*NANO, "--target", "0.5x", "--output", "missing/a.json"], "--target 0.5x", "1x or more"),
        ([*NANO, "--target", "2x", "--batch_size", "1", "8"], "--batch_size 1 8", "give one"),
        ([*NANO, "--target", "2x", "--compile"], "eager passes", "leave --compile out"),
        ([*NANO, "--by_samples", "--compile"], "eager passes in fp32 on a CPU", "leave it out, or --compile"),
        (["--r", "0", "--metric", "B"], "--metric has no effect", "--r 0 merges nothing"),
        (["--r", "0", "--metric", "foo"], "--metric foo", "'delta'"),
        (["--r", "0", "--window", "1,3,3"], "--window has no effect", "--r 0 merges nothing"),
        ([*NANO, "--metric", "Q", "--output", "missing/a.json"], "--metric Q", "X, B, C and delta"),
        ([*NANO, "--metric", "Z", "--output", "missing/a.json"], "--metric Z", "'delta'"),
        (
            ["--model", "RMeeTo_tiny_teacher", "--device", "cpu", "--output", "missing/a.json"],
            "teacher",
            "RMeeTo_tiny",
        ),
    ],
)
def test_bad_command_lines_are_one_error_and_exit_2(flags, got, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    captured = capsys.readouterr()
    assert got in captured.err and expected in captured.err
    assert captured.err.startswith("error: ") and len(captured.err.splitlines()) <= 2
    assert not captured.out and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_error(capsys):
    assert main(["--device", "cuda"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_out_of_memory_is_one_error(monkeypatch, capsys, tmp_path):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(throughput, "benchmark", full)
    assert main([*NANO, "--batch-size", "9", "--output", str(tmp_path / "a.json")]) == 2
    assert "--batch_size 9 does not fit" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_scattered_runs_are_said_to_be_rough(monkeypatch, capsys, tmp_path):
    seconds = (1.0, 1.0, 2.0, 3.0, 3.0)
    monkeypatch.setattr(
        throughput,
        "benchmark",
        lambda models, batch, **_: {name: Timing(seconds, len(batch)) for name in models},
    )
    assert main([*NANO, "--output", str(tmp_path / "a.json")]) == 0
    assert "the machine is busy" in capsys.readouterr().out


def test_the_plot_has_units_and_a_line_for_each_batch(instant, tmp_path):
    file = tmp_path / "a.json"
    assert main([*NANO, "--r", "4", "8", "--batch-size", "1", "2", "4", "--output", str(file)]) == 0
    figure = draw(json.loads(file.read_text()))
    left, right = figure.axes
    assert "times" in left.get_ylabel() and "images/s" in right.get_ylabel()
    assert all("tokens" in ax.get_xlabel() for ax in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()][1:] == [
        "batch 1",
        "batch 2",
        "batch 4",
    ]
    speed_up = left.containers[0].lines[0]
    assert list(speed_up.get_xdata()) == [0, 4, 8]
    assert list(speed_up.get_ydata()) == pytest.approx([1, 10 / 9, 10 / 8])


@pytest.mark.parametrize(("found", "said"), [({"avx512_f": True}, True), ({"avx512_bf16": True}, False), (None, False)])
def test_emulated_bf16_is_said_to_be_slow(found, said, instant, monkeypatch, tmp_path, capsys):
    capabilities = {} if found is None else {"architecture": "x86_64", **found}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    flags = [*NANO, "--r", "0", "--batch_size", "1", "--output", str(tmp_path / "speed.json")]
    assert main([*flags, "--dtype", "bf16"]) == 0
    assert ("note: this processor emulates bf16: it is slower than fp32" in capsys.readouterr().out) is said
