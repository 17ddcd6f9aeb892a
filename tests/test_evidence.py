"""docs/evidence.md: its tables are those of the records, and the records are of the recipes."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from fig import evidence
from fig.evidence_claims import CLAIMS, Claim, more
from fig.evidence_pairs import weights
from fig.evidence_records import (
    IMAGES,
    MISSING,
    MODELS,
    RECORDS,
    RIGHT,
    Evidence,
    Interval,
    collect,
    packed,
    removed,
    unpacked,
)
from image_task.flags import parse
from rmeeto.json_file import read_json, write_json
from tests.recipes import RECIPES, plan

LOG = """{"event": "step", "epoch": 1, "step": 2}
{"event": "step", "epoch": 1, "step": 2, "lr": 0.1, "process": {"images_per_s": 9.0, "left_s": 1.0}}
{"event": "train", "epoch": 1, "step": 4, "process": {"seconds": 3.25}}
{"event": "eval", "epoch": 1, "step": 4, "process": {"seconds": 0.5}}
"""
FASHION = [recipe for recipe in RECIPES if recipe.parent.name == "fashion"]


def recorded() -> dict:
    return read_json(RECORDS) if RECORDS.exists() else {}


def runs() -> dict:
    """What the recipes run with seed 0, by name."""
    return {config.run.name: config for recipe in FASHION for config, _ in plan(recipe)}


def of(**top1: float) -> Evidence:
    """Evidence of some made-up rows of Vim: name, arm and seed, with _ for -."""
    return Evidence({f"vim-{name.replace('_', '-')}": {"top1": value, "count": IMAGES} for name, value in top1.items()})


def test_the_page_is_that_of_the_records():
    text, found = evidence.DOCUMENT.read_text(), Evidence(recorded(), read_json(RIGHT))
    assert evidence.renewed(text, found) == text, "run python fig/evidence.py"


def test_records_are_of_the_recipes():
    expected = runs()
    for name, record in recorded().items():
        assert record["seed"] == int(re.search(r"-seed(\d+)$", name)[1])
        config, _, _ = parse(shlex.split(record["command"])[2:])
        ours = expected[re.sub(r"\d+$", "0", name)]
        for part in ("merge", "optim"):
            assert getattr(config, part) == getattr(ours, part), name
        assert config.distill == replace(ours.distill, teacher_cache=config.distill.teacher_cache)
        assert (config.model.model, config.data.holdout) == (ours.model.model, ours.data.holdout)


def test_every_row_of_the_page_is_a_run_of_the_recipes():
    terms = [term for group in CLAIMS.values() for claim in group for term in claim.terms]
    rows = {(kind, name, arm) for _, kind, name, arm in terms}
    both = [*evidence.ORDER, *evidence.ABLATIONS, *evidence.SLOPES]
    rows |= {("vim", name, arm) for _, name in both for arm in ("free", "brief")}
    rows |= {("vim", name, "free") for _, name in evidence.BLOCKS}
    rows |= {("vim", name, "brief") for _, name in evidence.AMOUNTS}
    rows |= {("vim", name, "trained") for _, name in evidence.LONGER}
    rows |= {("deit", name, "trained") for name in evidence.LONGER_DEIT}
    rows |= {("vim", f"r{r}", "elastic") for r in evidence.ELASTIC}
    names = runs()
    for kind, name, arm in rows:
        run = f"{kind}-{name}-{arm}-test-seed0" if arm != "elastic" else f"{kind}-elastic-at-{name}-test-seed0"
        assert run in names


def test_one_seed_has_the_interval_of_the_images_and_three_that_of_the_seeds():
    one = of(r0_free_test_seed0=90.0)
    assert one.sum((1, "vim", "r0", "free")) == pytest.approx((90, 90 - 0.588, 90 + 0.588), abs=1e-3)
    assert one.cell("vim", "r0", "free") == "90.00 ± 0.59" and one.cell("deit", "r0", "free") == MISSING
    three = of(**{f"r0_free_test_seed{seed}": 90.0 + seed for seed in range(3)})
    assert three.sum((1, "vim", "r0", "free")) == pytest.approx((91, 91 - 2.484, 91 + 2.484), abs=1e-3)
    assert three.cell("vim", "r0", "free") == "91.00 ± 2.48 (3 seeds)"


def test_a_difference_is_of_the_seeds_that_both_have():
    found = of(r0_free_test_seed0=90.0, r0_free_test_seed1=80.0, r11_free_test_seed1=70.0)
    mean, low, high = found.sum(*more("vim", "free", "r0", "r11"))
    assert mean == 10 and high - mean == pytest.approx(1.96 * (0.16 + 0.21) ** 0.5)
    assert found.sum(*more("vim", "free", "r0", "r5")) is None


def test_answers_on_the_same_images_say_more_than_their_accuracies():
    both, one, other = 8000, 300, 100  # right in both rows, in the first alone, in the second alone
    image = np.arange(IMAGES)
    first, second = image < both + one, (image < both) | (image >= IMAGES - other)
    found = of(r0_free_test_seed0=83.0, r11_free_test_seed0=81.0)
    wide = found.sum(*more("vim", "free", "r0", "r11"))
    found.right["vim-r0-free-test-seed0"] = packed(first)
    assert found.sum(*more("vim", "free", "r0", "r11")) == wide  # of the other it is not known
    found.right["vim-r11-free-test-seed0"] = packed(second)
    mean, low, high = found.sum(*more("vim", "free", "r0", "r11"))
    assert mean == 2 and high - mean == pytest.approx(196 * (0.04 - 0.02**2) ** 0.5 / 100)
    assert high - mean < (wide.high - mean) / 2
    assert found.cell("vim", "r0", "free") == "83.00 ± 0.74" == of(r0_free_test_seed0=83.0).cell("vim", "r0", "free")


def test_the_answers_recorded_add_up_to_the_accuracies():
    found = recorded()
    for run, text in read_json(RIGHT).items():
        assert unpacked(text).sum() == round(100 * found[run]["top1"]), run


def test_a_rows_answers_come_from_the_weights_that_it_trained(tmp_path):
    runs = tmp_path / "fashion"
    for row, trained in {
        "vim-r11-l1-brief-test-seed0": "vim-r11-l1-brief-seed0",
        "vim-elastic-at-r5-test-seed0": "vim-elastic-brief-seed0",
    }.items():
        assert weights(row, tmp_path) == runs / trained / "last.pt"
    assert weights("deit-r5-free-test-seed0", tmp_path) == RECORDS.with_name("deit.safetensors")


@pytest.mark.parametrize(
    ("interval", "above", "within"),
    [
        (None, MISSING, MISSING),
        (Interval(2, 1, 3), "seen", "not seen"),
        (Interval(0.2, 0.1, 0.3), "seen", "seen"),
        (Interval(-2, -3, -1), "not seen", "seen"),
        (Interval(0.4, -0.1, 0.9), "not decidable at this size", "not decidable at this size"),
    ],
)
def test_a_verdict_takes_the_whole_interval(interval, above, within):
    assert Claim("", "", ()).verdict(interval) == above
    assert Claim("", "", (), within=0.5).verdict(interval) == within


def test_finished_runs_are_collected_and_fill_the_page(tmp_path, monkeypatch):
    env = {"command": ["python", "main.py"], "commit": "abc", "device": "cpu", "processes": 1, "torch": "2"}
    for name, config in runs().items():
        folder = tmp_path / "fashion" / name
        folder.mkdir(parents=True)
        write_json(folder / "config.json", config.to_dict())
        write_json(folder / "env.json", env)
        (folder / "log.jsonl").write_text(LOG)
        count = IMAGES if config.run.eval else 5000
        write_json(folder / "result.json", {"top1": 80.0, "count": count, "unreadable": 0})
    found = Evidence(collect(tmp_path))
    assert len(found.records) == len(runs())
    assert {record["seconds"] for record in found.records.values()} == {3.8}
    assert all(MISSING not in text for text in evidence.tables(found).values())
    monkeypatch.setattr(evidence, "PICTURE", tmp_path / "evidence.png")
    evidence.draw(found)
    assert (tmp_path / "evidence.png").stat().st_size > 10_000


def test_the_ratio_is_the_papers():
    none, eight, below, above = (removed(evidence.every_block(r)) for r in (0, 8, 17, 18))
    assert none == 0 and eight == pytest.approx(0.142, abs=1e-3)
    assert 0.30 < below < above < 0.325
    assert all(removed(evidence.every_block(r), MODELS["deit"]) == removed(evidence.every_block(r)) for r in evidence.R)


def test_dense_weights_are_put_beside_the_recipes_small_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RECORDS", tmp_path / "results.json")
    for kind, name in MODELS.items():
        model = timm.create_model(name)
        folder = tmp_path / "fashion" / f"{kind}-dense-seed0"
        folder.mkdir(parents=True)
        torch.save({"model": model.state_dict()}, folder / "last.pt")
        evidence.ship(kind, tmp_path)
        shipped = load_file(tmp_path / f"{kind}.safetensors")
        assert all(torch.equal(shipped[key], value) for key, value in model.state_dict().items())
        assert (tmp_path / f"{kind}.safetensors").stat().st_size < 4e6
