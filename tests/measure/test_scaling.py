"""The wall time of machines that are not there: arithmetic that can be done by hand, and a page that is up to date."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks import minutes, wall_time
from rmeeto.errors import UserError
from rmeeto.measure.scaling import BUCKET, Link, Machines, Rates, Work, message_s, predict, reduce_s

LINK = Link(bandwidth=1e9, latency=1e-3)
RATES = Rates(batch=10, compute_s=1.0, backward_s=0.5, update_s=0.1, load_s=0.02, evaluate_s=0.01, start_s=7.0)
WORK = Work(samples=400, evaluated=100, epochs=3, gradient_bytes=1e8, accumulation=2, messages=0)


def machines(count=1, processes=1, cores=16, **more) -> Machines:
    return Machines(count, processes, cores, LINK, more.pop("between", LINK), **more)


def test_one_process_by_hand():
    found = predict(RATES, WORK, machines())
    assert (found.steps, found.compute_s, found.reduce_s) == (20, 2.0, 0.0)
    assert found.wait_s == pytest.approx(2 * 10 * 0.02), "it loads for itself"
    assert found.total_s == pytest.approx(7 + 3 * (20 * (2.0 + 0.4 + 0.1) + 100 * 0.01))


def test_loaders_run_beside_the_compute():
    assert predict(RATES, WORK, machines(workers=4)).wait_s == 0
    slow = dataclasses.replace(RATES, load_s=0.5)
    assert predict(slow, WORK, machines(workers=4)).wait_s == pytest.approx(2 * (10 * 0.5 / 4 - 1.0))
    few = machines(processes=8, cores=8, workers=4)
    assert predict(slow, WORK, few).wait_s == pytest.approx(2 * (10 * 0.5 / 1 - 1.0)), "a core a process"


def test_processes_beyond_the_cores_take_turns():
    busy = dataclasses.replace(RATES, busy=1.2)
    seconds = {n: predict(busy, WORK, machines(processes=n, cores=2, on_cores=True)).compute_s for n in (1, 2, 4)}
    assert seconds == {1: 2.0, 2: pytest.approx(2.4), 4: pytest.approx(4.8)}
    assert predict(RATES, WORK, machines(processes=4, cores=2)).compute_s == 2.0, "each has a GPU"


def test_gradients_travel_in_a_ring_or_are_gathered():
    four = machines(processes=4)
    assert message_s(four) == pytest.approx(2 * 2 * 1e-3)
    assert reduce_s(1e8, four) == pytest.approx(2 * 3 / 4 * 0.1 + 4 * message_s(four)), "4 buckets of 25 MiB"
    assert reduce_s(1e8, machines(processes=4, gathers=True)) == pytest.approx(3 * (0.1 + 1e-3))
    slow = machines(count=2, processes=2, between=Link(1e8, 5e-3))
    assert reduce_s(BUCKET, slow) == pytest.approx(2 * 3 / 4 * BUCKET / 1e8 + 2 * (1e-3 + 5e-3))
    assert reduce_s(1e8, machines()) == 0


def test_the_backward_pass_hides_all_but_the_last_bucket():
    whole = reduce_s(1e8, machines(processes=4))
    waits = [predict(RATES, WORK, machines(processes=4, overlap=share)).reduce_s for share in (0, 0.1, 1)]
    assert waits == pytest.approx([whole, whole - 0.1 * 0.5, whole / 4])


def test_a_step_beyond_the_data_is_refused():
    with pytest.raises(UserError, match="a step of 640 samples is more than the 400"):
        predict(RATES, WORK, machines(count=4, processes=8))


def test_the_papers_figures_are_met_with_what_does_not_shrink():
    """From 8 GPUs alone within 15 %, which it is said to be off at the most; with that part within 5 %."""
    rows = [line.split(" | ") for line in wall_time.against_the_paper().splitlines()[2:]]
    for row in rows:
        for cell, most in ((row[4], 7), (row[5], 15), (row[7], 5)):
            assert abs(int(cell.split("(")[1].split()[0])) <= most, row


@pytest.mark.parametrize("file", wall_time.PAGES, ids=lambda file: file.stem)
def test_the_pages_are_those_of_the_code(file):
    text = file.read_text()
    assert "<!-- " in text and text == wall_time.page(text), "run python -m benchmarks.wall_time"


def test_recorded_rows_are_a_table_and_what_is_not_measured_is_said(tmp_path, monkeypatch):
    result = {"device": "A", "cores": 2, "load_average_start": [0.1], "date": "2026-01-02T03:04:05"}
    rows = [{"processes": 1, "error": 0.01234567}, {"processes": 2, "error": None}]
    (tmp_path / "scaling-fp32-cpu-pt2.json").write_text(json.dumps(result | {"scaling": rows}))
    monkeypatch.setattr(wall_time, "RESULTS", tmp_path)
    text = wall_time.recorded("scaling", {"processes": "processes", "error": "error"})
    assert text.startswith("A, 2 cores, load 0.1, 2026-01-02, `scaling-fp32-cpu-pt2.json`:")
    assert "| 1 | 0.01235 |" in text and "| 2 | not measured |" in text
    assert wall_time.recorded("minutes", {}) == wall_time.NONE_YET


def test_measured_runs_become_minutes(tmp_path, monkeypatch):
    """As exp_sh/minutes.sh leaves them; 3 epochs of ImageNet-1K at 64,058 images/s are a minute."""
    folder = tmp_path / "minutes" / "vim_tiny_patch16_224-2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    line = {"event": "train", "epoch": 1, "step": 9, "loss": 1.0, "process": {"images_per_s": 64058.35}}
    (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setenv("RUNS", str(tmp_path))
    assert minutes.measured_runs("vim_tiny_patch16_224") == [None, pytest.approx(1.0, rel=1e-4), None]
