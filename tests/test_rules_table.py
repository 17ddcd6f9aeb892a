"""docs/rules.md: its table is written from the records, and the records are of the recipes."""

from __future__ import annotations

import json
import re
import shlex
from statistics import mean

import pytest

from fig import rules
from rmeeto.merge import RULES
from tests.recipes import ROOT, plan


def cells() -> dict[str, list[str]]:
    """The cells of the document by the rule of their row."""
    lines = [line for line in rules.DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.strip("`"): row for name, *row in rows}


def test_the_table_has_every_rule_and_is_that_of_the_records():
    assert set(cells()) == set(rules.NAMES) == set(RULES)
    text = rules.DOCUMENT.read_text()
    assert rules.renewed(text) == text, "run python fig/rules.py"


def test_cells_say_what_was_measured():
    columns = [(task, arm) for task in rules.TASKS for arm in rules.ARMS]
    for rule, row in cells().items():
        for (task, arm), cell in zip(columns, row):
            runs = {name: record["top1"] for name, record in task.records().items()}
            names = [f"{rule}-{arm}-seed{seed}" for seed in range(3)]
            known = [runs[name] for name in names if name in runs]
            numbers = [float(number) for number in re.findall(r"\d+\.\d+", cell)]
            if rule == "exact" or len(known) == 3:
                assert rules.MISSING not in cell
                assert rule == "exact" or numbers[0] == pytest.approx(mean(known), abs=0.005)
            else:
                assert rules.MISSING in cell and numbers == pytest.approx(known, abs=0.005)


def test_records_are_of_the_recipe_and_of_the_rule_that_they_are_named_after():
    (recipe,) = {rules.TASKS[0].folder / "rules.sh"}
    commands = {config.run.name: config for config, _ in plan(recipe)}
    assert len(commands) == 12 and {config.merge.r for config in commands.values()} == {12}
    for task in rules.TASKS:
        for name, record in task.records().items():
            rule, arm, seed = name.rsplit("-", 2)
            command = shlex.split(record["command"])
            assert command[command.index("--rule") + 1] == rule and seed == f"seed{record['seed']}"
            assert ("--eval" in command) == (arm == "training_free")


def test_the_interval_is_student_s():
    assert rules.interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(2.484, abs=1e-3))


def test_finished_runs_are_taken_in_and_drawn(tmp_path, monkeypatch):
    task = rules.Task("digits", tmp_path / "digits", "rules")
    for name in ("rules/shift-retrained-seed0", "digits/exact"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "digits" / "results").mkdir(parents=True)
    source = ROOT / "image_task" / "exp_sh" / "digits" / "results"
    for seed in rules.SEEDS:
        for arm in rules.ARMS:
            (tmp_path / "digits" / "results" / f"{arm}-seed{seed}").symlink_to(source / f"{arm}-seed{seed}")
    for file in (source / "retrained-seed0").iterdir():
        (tmp_path / "runs" / "rules" / "shift-retrained-seed0" / file.name).write_text(file.read_text())
    monkeypatch.setattr(rules, "TASKS", (task, task))
    monkeypatch.setattr(rules, "PICTURE", tmp_path / "rules.png")
    monkeypatch.setattr(rules, "DOCUMENT", tmp_path / "rules.md")
    (tmp_path / "rules.md").write_text(f"before\n{rules.BEGIN}\nold\n{rules.END}\nafter\n")
    assert rules.main(["--collect", str(tmp_path / "runs")]) == 0
    record = json.loads((tmp_path / "digits" / "results" / "rules.json").read_text())
    assert record["shift-retrained-seed0"]["top1"] == pytest.approx(98.06, abs=0.005)
    text = rules.DOCUMENT.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "98.06 (seed 0), the others not yet measured" in text and rules.PICTURE.stat().st_size > 10_000


def test_one_merge_is_timed_on_every_rule():
    size = rules.Size(17, 8, (1, 4, 4), 3, (1, 2, 2))
    for name in rules.NAMES:
        assert rules.one_merge(size, name)(None).hidden.shape == (8, 14, 192)
