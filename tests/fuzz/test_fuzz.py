"""Some inputs of every kind, all that were findings once, and faults that the fuzzer has to find."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from random import Random

from tests.fuzz.case import Case
from tests.fuzz.kinds import KINDS
from tests.fuzz.kinds.faults import FAULTS, HARMLESS
from tests.fuzz.runner import SEEDS
from tests.limits import ROOT
from tests.warm import PYTHON


def fuzz(*arguments: object) -> tuple[dict, str]:
    """The report of a run, and what it said of findings."""
    command = [PYTHON, "-m", "tests.fuzz", "--workers", "1", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (1 if report["findings"] else 0)
    return report, done.stderr


def test_no_input_of_any_kind_is_a_finding_and_none_is_any_more(tmp_path):
    report, said = fuzz("--replay", "--inputs", 600, "--seed", 1, "--keep", tmp_path)
    assert not report["findings"], said
    assert set(report["by_kind"]) == set(KINDS)
    for outcomes in report["by_kind"].values():
        assert outcomes["accepted"] > 0 and outcomes["refused"] > 0  # neither is the only answer


def test_every_fault_is_found_and_harmless_inputs_are_not(tmp_path):
    seeds = tmp_path / "faults"
    seeds.mkdir()
    for name in (*FAULTS, *HARMLESS):
        right = "accept" if name == "honest" else "any"
        (seeds / f"{name}.bin").write_bytes(Case(b"", name, right).to_bytes())
    report, said = fuzz("--replay", tmp_path, "--kind", "faults", "--seconds", 0.3, "--keep", tmp_path / "kept")
    found = {Case.from_bytes(path.read_bytes()).seed for path in (tmp_path / "kept" / "faults").iterdir()}
    assert found == {*FAULTS}, said
    assert report["findings"] == len(FAULTS) and report["inputs"] == len(FAULTS) + len(HARMLESS)
    assert re.search("a crash: exit code -11", said) and re.search("a hang: 0.. s of processor time", said)


def test_a_seed_of_the_generator_gives_the_same_inputs():
    seeds = KINDS["lists"].seeds()
    first, second = (KINDS["lists"].mutate(Random("0/lists/7"), seeds) for _ in range(2))
    assert first == second and Case.from_bytes(first.to_bytes()) == first


def test_kept_inputs_belong_to_a_kind_and_bear_their_digest():
    for path in SEEDS.rglob("*.bin"):
        assert path.parent.name in KINDS
        assert Case.from_bytes(path.read_bytes()).name == path.stem
        assert os.path.getsize(path) <= 1 << 17


def test_recorded_runs_say_what_was_run():
    for path in (Path(__file__).parent / "results").glob("*.json"):
        report = json.loads(path.read_text())
        assert {"inputs", "findings", "by_kind", "seconds", "seed", "commit", "date"} <= set(report)
        assert re.fullmatch("[0-9a-f]{40}", report["commit"])
