"""The suite that says where the time of a forward pass goes."""

from __future__ import annotations

import pytest

from benchmarks import breakdown


def test_each_kind_of_operator_is_seen_and_they_sum_up_to_the_whole():
    (unit,) = breakdown.units(2, quick=True)
    rows = list(unit.rows())
    assert [row["r"] for row in rows] == list(breakdown.R)
    for row in rows:
        kinds = [row[kind] for kind in (*breakdown.KINDS, "rest")]
        assert sum(kinds) == pytest.approx(row["whole"], rel=0.3)
        seen = {kind for kind in breakdown.KINDS if row[kind] > 0}
        assert seen == set(breakdown.KINDS) - ({"matching", "gather"} if row["r"] == 0 else set())
    assert rows[0]["speed_up"] == rows[0]["theory"] == 1 and rows[-1]["theory"] > 1.2
