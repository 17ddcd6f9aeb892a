"""The benchmark refuses what is wrong, writes down where and when, overwrites nothing and says what was reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import (
    cli,
    operators,
    peers,
    report,
    results,
    rounds,
    schedules,
    targets,
    timing,
)
from benchmarks.results import Unit
from tests.warm import PYTHON

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def small_scan(**ways):
    """The smallest scan case, with these ways beside the ones it has."""
    case = operators.scan((2, 16, 9), CPU, torch.float32)
    case.ways.update(ways)
    return case


def rows_of(*cases):
    return [row for case in cases for row in operators.measure(case, CPU, 5, 0.0)]


class GradientOfAnother(torch.autograd.Function):
    """Identity with a wrong gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.01 * gradient


def broken(kind):
    """The eager loop, spoilt."""
    eager = small_scan().ways["torch"]

    def way(u, *others):
        if kind == "gradient":
            u = GradientOfAnother.apply(u)
        out = eager(u, *others)
        if kind == "value":
            return out * 1.001
        if kind == "one element":
            return out + torch.zeros_like(out).index_fill_(1, torch.tensor([3]), 0.1)
        if kind == "not finite":
            return out / torch.ones_like(out).index_fill_(1, torch.tensor([3]), 0.0)
        if kind == "shape":
            return out[:, 1:]
        return out.detach() + 0 * u.sum() if kind == "no gradient" else out

    return way


@pytest.mark.parametrize("kind", ["value", "gradient", "one element", "not finite", "shape", "no gradient"])
def test_a_broken_backend_is_refused_and_not_timed(kind):
    rows = rows_of(small_scan(broken=broken(kind)))
    mine = [row for row in rows if row["way"] == "broken"]
    assert len(mine) == 1 and "RMS ratio" in mine[0]["refused"]
    assert ("gradient of u" in mine[0]["refused"]) == (kind in ("gradient", "no gradient"))
    assert "median_ms" not in mine[0]
    assert {row["pass"] for row in rows if row["way"] == "torch"} == {operators.FORWARD, operators.BOTH}


def test_a_sound_backend_is_timed():
    rows = [row for row in rows_of(small_scan(sound=broken("nothing"))) if row["way"] == "sound"]
    assert [row["pass"] for row in rows] == [operators.FORWARD, operators.BOTH]
    for row in rows:
        assert len(row["runs_ms"]) == 5 and row["median_ms"] > 0
        assert 0 <= row["parity"]["output"] < 1e-5 and 0 <= row["parity"]["gradients"] < 1e-5


@pytest.mark.parametrize("spoil", ["pairs", "order", "twice"])
def test_a_wrong_plan_is_refused(spoil):
    case = operators.matching((2, 21, 16), 4, CPU, torch.float32)

    def way(metric):
        plan = case.reference(metric)
        keep, source, destination = plan.keep, plan.source, plan.destination
        if spoil == "pairs":
            destination = destination.roll(1, dims=1)
        elif spoil == "order":
            keep = torch.cat([keep[:, 1:2], keep[:, :1], keep[:, 2:]], dim=1)
        else:
            source = source[:, :1].expand_as(source)
        return replace(plan, keep=keep, source=source, destination=destination)

    case.ways["spoilt"] = way
    assert [("refused" in row) for row in rows_of(case) if row["way"] == "spoilt"] == [True]


def test_a_refusal_is_in_the_result_and_in_the_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(operators, "cases", lambda *_: [small_scan(broken=broken("gradient"))])
    assert cli.main(["operators", "--dtype", "fp32", "--quick", "--runs", "5", "--out", str(tmp_path)]) == 1
    (file,) = tmp_path.glob("operators-fp32-cpu-pt*.json")
    assert "gradient of u" in next(r for r in json.loads(file.read_text())["rows"] if r["way"] == "broken")["refused"]
    assert "refused: gradient of u" in capsys.readouterr().out


def test_a_refused_backend_reaches_no_target(monkeypatch):
    chosen = operators.SCAN.chosen("cpu")
    monkeypatch.setattr(operators, "backends", lambda operator, device: {
        name: broken_order(name == chosen and operator is operators.SCAN, way)
        for name, way in original(operator, device).items()
    })  # fmt: skip
    rows = [row for _, unit in zip(range(2), targets.units(CPU, 5, quick=True)) for row in unit.rows()]
    assert [row["met"] for row in rows[:2]] == [False, False]
    assert [row["ratio"] for row in rows[:2]] == [None, None]
    assert "refused" not in rows[2] and rows[2]["ratio"] > 0
    assert "refused" in targets.table(rows)


original = operators.backends


def broken_order(spoil, way):
    return (lambda *tensors: way(*tensors) * 1.001) if spoil else way


def test_the_targets_end_with_its_ratios_as_a_table_and_as_json(tmp_path):
    command = ["-m", "benchmarks", "targets", "--quick", "--runs", "5", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run([PYTHON, *command], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = json.loads(lines[-1])["rows"]
    kinds = ["scan, forward 2", "scan, forward + backward 2", "merge 2", "forward over eager loop",
             "merged over dense, r = 5", "merged over dense, r = 11", "slowest of r = 5",
             "by samples, r = 5", "by samples, r = 11", "training memory / eager"]  # fmt: skip
    assert len(rows) == len(kinds) and all(kind in row["row"] for kind, row in zip(kinds, rows))
    for row in rows:
        assert row["ratio"] > 0 and row["target"] > 0
        assert row["met"] == (row["ratio"] <= row["target"] if row["at_most"] else row["ratio"] >= row["target"])
    assert rows[4]["theory"] > 1 and rows[5]["theory"] > rows[4]["theory"]
    table = lines[-2 - len(rows) : -1]
    assert table[0].split() == ["ratio", "IQR", "theory", "target", "moon", "met"]
    assert max(map(len, table)) <= 80
    (file,) = tmp_path.iterdir()
    assert file.name == f"targets-fp32-cpu-pt{torch.__version__.partition('+')[0]}.json"
    result = json.loads(file.read_text())
    assert result["rows"] == rows
    assert result["command"] == ["python", *command] and result["threads"] == 1 and result["quick"] is True
    for name in ("commit", "device", "torch", "date", "load_average_start", "load_average_end", "cores"):
        assert result[name], name


def test_targets_are_those_of_the_issue():
    assert operators.SCANS == ((64, 128, 65), (8, 384, 197), (4, 768, 197)) and operators.TOKENS[0] == (
        8,
        197,
        192,
    )
    assert (targets.SCAN_TARGETS, targets.FORWARD_TARGET, targets.MERGE_TARGET, targets.MERGED_TARGETS) == (
        {"forward": (6, 9), "forward + backward": (4.5, 8)}, (4, 6), (3, 6), {5: (1.12, 1.15), 11: (1.36, 1.42)}
    )  # fmt: skip


def suite_of(*units):
    return cli.SUITES["operators"]._replace(units=lambda *_: iter(units))


@pytest.fixture
def one_row(monkeypatch):
    row = {"what": "scan", "shape": (1,), "way": "torch"}
    monkeypatch.setitem(cli.SUITES, "operators", suite_of(Unit("scan", lambda: [row])))
    return ["operators", "--dtype", "fp32"]


def test_a_result_is_not_overwritten_unless_forced(one_row, tmp_path, capsys):
    command = [*one_row, "--out", str(tmp_path)]
    assert cli.main(command) == 0
    (file,) = tmp_path.iterdir()
    file.write_text("kept")
    assert cli.main(command) == 2 and cli.main([*command, "--resume"]) == 2
    assert capsys.readouterr().err.count("\n") == 2 and file.read_text() == "kept"
    assert cli.main([*one_row, "--out", str(tmp_path / "other")]) == 0
    assert cli.main([*command, "--force"]) == 0
    assert json.loads(file.read_text())["what"] == "operators"


def test_nothing_is_measured_before_every_place_is_free(tmp_path, monkeypatch):
    results.path_of(tmp_path, "operators", "bf16", CPU).write_text("kept")
    monkeypatch.setitem(cli.SUITES, "operators", suite_of(Unit("a", lambda: pytest.fail("measured"))))
    assert cli.main(["operators", "--out", str(tmp_path)]) == 2


def test_what_is_complete_is_kept_and_what_failed_is_tried_again(tmp_path, monkeypatch, capsys):
    ran = []

    def unit(name, fails=False):
        def rows():
            ran.append(name)
            yield {"what": name, "median_ms": 1.0}
            if fails:
                raise RuntimeError(f"{name} broke")

        return Unit(name, rows)

    command = ["operators", "--dtype", "fp32", "--out", str(tmp_path), "--resume"]
    monkeypatch.setitem(cli.SUITES, "operators", suite_of(unit("a"), unit("b", fails=True), unit("c")))
    assert cli.main(command) == 1
    (file,) = tmp_path.iterdir()
    result = json.loads(file.read_text())
    assert [row["what"] for row in result["rows"]] == result["units"] == ["a", "c"]
    assert result["failed"] == [{"what": "b", "reason": "RuntimeError: b broke"}]
    monkeypatch.setitem(cli.SUITES, "operators", suite_of(unit("a"), unit("b"), unit("c")))
    assert cli.main(command) == 0
    assert ran == ["a", "b", "c", "b"]
    result = json.loads(file.read_text())
    assert [row["what"] for row in result["rows"]] == ["a", "c", "b"] and "failed" not in result
    assert cli.main([*command, "--runs", "7"]) == 2
    assert "runs 11, now 7" in capsys.readouterr().err


def test_rows_of_the_front_grow_by_a_run_a_round(tmp_path, monkeypatch):
    command = [
        "front",
        "--quick",
        "--r",
        "0",
        "5",
        "--batch",
        "1",
        "--modes",
        "eager",
        "--runs",
        "5",
        "--out",
        str(tmp_path),
        "--resume",
    ]
    run, left = rounds._run, iter(range(7))

    def stopped(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        yield from run(*arguments)

    monkeypatch.setattr(rounds, "_run", stopped)
    assert cli.main(command) == 130
    (file,) = tmp_path.glob("front-fp32-cpu-pt*.json")
    begun = json.loads(file.read_text())["rows"]
    assert sorted(len(row["runs_ms"]) for row in begun) == [3, 4]
    monkeypatch.setattr(rounds, "_run", run)
    assert cli.main(command) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["r"] for row in rows] == [0, 5] and all(len(row["runs_ms"]) == 5 for row in rows)
    assert all(new["runs_ms"][: len(old["runs_ms"])] == old["runs_ms"] for new, old in zip(rows, begun))
    assert all(low <= row["median_ms"] <= high for row in rows for low, high in [row["quartiles_ms"]])
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("nothing", "invalid choice: 'nothing'"),
        ("targets --runs 4", "--runs is 4; expected 5 or more"),
        (
            "operators --models vim_tiny",
            "--models has no effect on operators; it belongs to models, training",
        ),
        ("targets --dtype bf16", "--dtype has no effect on targets"),
        ("models --modes graphed --device cpu", "--modes graphed needs a GPU"),
        ("models --models vim_tini", "vim_tini: no such model; there are"),
        ("targets --device cuda", "--device cuda: "),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_code_2(flags, words, capsys):
    assert cli.main(flags.split()) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and words in message and message.count("\n") <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_operator_passes_its_parity_test_and_is_timed(dtype):
    rows = rows_of(*operators.cases(CPU, dtype, quick=True, kernels=peers.find(None, CPU)))
    assert not [row for row in rows if "refused" in row]
    assert {row["what"] for row in rows} == {
        "scan",
        "scan, channel-major",
        "bidirectional scan",
        "conv",
        "add_norm",
        "match",
        "merge",
    }
    assert {row["way"] for row in rows if row["what"] == "merge"} >= {"torch", operators.RELEASED}
    assert all(row["share_of_floor"] > 0 for row in rows if row["pass"] == operators.FORWARD)


def test_the_harm_orders_schedules_better_than_the_tokens_removed():
    images, _ = schedules.digits(CPU)
    ours, tokens = schedules._orders(schedules.trained(CPU), images[:180], 30)
    assert ours["correlation"] > 0.9 > tokens["correlation"]


def test_ratio_and_its_spread():
    assert timing.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == (2.0, 0.0)
    value, spread = timing.ratio([2.0, 2.0, 4.0, 4.0], [1.0, 1.0, 1.0, 1.0])
    assert value == 3.0 and spread == 2.0


def test_floor_is_the_longest_of_its_bounds():
    floor = timing.Floor(CPU, torch.float32, traffic=8 * 1000, macs=timing.PRODUCT_SIDE["cpu"] ** 3)
    timings = {name: timing.Timing((seconds,) * 5, 1) for name, seconds in zip(floor.probes, (2e-3, 3e-3))}
    assert floor.ms(timings) == pytest.approx(3.0)
    assert timing.against_floor(3.0, 6.0) == {"floor_ms": 3.0, "share_of_floor": 0.5}
    assert timing.Floor(CPU, torch.float32, exponentials=10**9).ms({}) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_what_a_call_adds_at_its_peak():
    def call():
        return torch.ones(8_000_000) + 1

    assert timing.peak_memory(call, CPU) == pytest.approx(64e6, rel=0.1)


def test_the_readme_shows_the_results_that_are_there():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert report.renewed(text, results.FOLDER) == text, "run: python -m benchmarks.report"


def test_tables_come_from_the_files(tmp_path):
    result = results.begin(tmp_path / "none", "ops", "fp32", CPU, quick=False)
    result["rows"] = [{"what": "scan", "shape": (1, 2), "way": "cpp", "median_ms": 1.23456, "share_of_floor": 0.5}]
    results.write(tmp_path / "ops-fp32-cpu-pt1.json", result)
    text = report.renewed(f"before\n{report.BEGIN}\nold\n{report.END}\nafter", tmp_path)
    assert text.startswith("before\n") and text.endswith("\nafter") and "\nold\n" not in text
    assert "### ops-fp32-cpu-pt1.json" in text and "| scan | 1, 2 | cpp | 1.235 | 50% |" in text
    assert report.renewed(text, tmp_path / "none").count(report.NONE_YET) == 1
