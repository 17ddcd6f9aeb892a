"""docs/measure.md: its table and picture are those of the records, and the records are of the script."""

from __future__ import annotations

import numpy as np

from fig import information
from rmeeto.json_file import read_json
from rmeeto.measure.mutual_information import ESTIMATORS


def test_the_table_is_that_of_the_records():
    text = information.DOCUMENT.read_text()
    assert information.renewed(text) == text, "run python fig/information.py"


def test_records_are_whole_and_at_the_papers_settings():
    for name, record in information.records().items():
        assert record["steps"] == 1000 and record["seeds"] == [0, 1, 2]
        if name == "gaussians":
            rows = {(row["nats"], row["estimator"]): row["found"] for row in record["results"]}
            assert set(rows) == {(nats, estimator) for nats in information.NATS for estimator in ESTIMATORS}
            for (nats, estimator), found in rows.items():
                assert len(found) == 3 and max(found) < 1.1 * nats
                assert estimator != "infonce" or sum(found) / 3 > 0.9 * nats  # "within 10 % of the truth"
        else:
            model, per_token, _ = name.partition(information.PER_TOKEN)
            assert information.MODELS[model] in record["command"] and record["amortised"] == (not per_token)
            assert record["blocks"] == ([information.MIDDLE] if per_token else list(range(8)))


def test_the_script_measures_and_draws(tmp_path, monkeypatch):
    document = tmp_path / "measure.md"
    of = (information.OF_GAUSSIANS, information.OF_BLOCKS, information.OF_TOKENS)
    places = (f"{begin}\nold\n{end}" for begin, end in of)
    document.write_text("before\n\n" + "\n".join(places) + "\nafter\n")
    for name, value in {
        "RECORDS": tmp_path / "records",
        "DOCUMENT": document,
        "PICTURE": tmp_path / "i.png",
    }.items():
        monkeypatch.setattr(information, name, value)
    monkeypatch.setattr(information, "SAMPLES", 2000)
    information.main(["--measure", "gaussians", "--steps", "1"])
    assert read_json(tmp_path / "records" / "gaussians.json")["results"][0]["nats"] == 1.0
    text = document.read_text()
    assert "old" not in text and text.endswith("after\n") and text.count(" to ") == 4
    for begin, end in (information.OF_BLOCKS, information.OF_TOKENS):
        assert f"{begin}\n\n{information.MISSING}\n\n{end}" in text
    assert (tmp_path / "i.png").stat().st_size > 10_000


def test_both_kinds_of_networks_stand_beside_each_other_at_the_same_tokens(monkeypatch):
    def record(blocks, at, nats):  # three seeds, two tokens; the other blocks and parts hold what must not be shown
        rows = [[[nats + seed, nats - seed] if block == at else [99, 99] for block in blocks] for seed in (-1, 0, 1)]
        results = [{"part": "mixer", "estimator": estimator, "nats": rows} for estimator in ESTIMATORS]
        other = {**results[0], "part": "both", "nats": [[[99, 99]] * len(blocks)] * 3}
        return {"blocks": blocks, "places": [[0, 28]] * len(blocks), "results": [other, *results]}

    middle = information.MIDDLE
    found = {
        "vim": record([0, middle], middle, 2),
        "vim-per-token": record([middle], middle, 3),
        "deit": record([0], 0, 1),
    }
    monkeypatch.setattr(information, "records", lambda: found)
    head, _, *rows = information.tokens_table().splitlines()
    assert head == f"| nats in block {middle}, by place | bound | network | 0 | 28 | mean |"
    assert [row.split(" | ", 1)[1] for row in rows] == [
        f"`{estimator}` | {network} | {nats:.2f} ± 1.00 | {nats:.2f} ± 1.00 | {nats:.2f} ± 0.00 |"
        for estimator in ESTIMATORS
        for network, nats in (("one for all", 2), ("one a token", 3))
    ]


def test_panels_to_be_compared_have_one_axis_and_nothing_is_cut_off(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(information, "save", lambda figure, *_: drawn.append(figure))
    information.draw(tmp_path / "i.png")
    axes = drawn[0].axes
    columns = len(axes) // len(ESTIMATORS)
    found = [record for name, record in information.records().items() if name in information.MODELS]
    for at, estimator in enumerate(ESTIMATORS):
        _, *of_models = axes[at * columns : (at + 1) * columns]
        rows = [row["nats"] for record in found for row in record["results"] if row["estimator"] == estimator]
        means = [np.mean(seed, axis=-1) for nats in rows for seed in nats]
        for ax in of_models:
            assert ax.get_ylim() == of_models[0].get_ylim()
            assert ax.get_ylim()[0] < np.min(means) and np.max(means) < ax.get_ylim()[1]
