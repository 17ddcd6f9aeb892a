from __future__ import annotations

from dataclasses import dataclass

import pytest

from rmeeto.errors import UserError
from rmeeto.settings import Settings, describe, from_plain, harmless, setting, smoked


@dataclass(frozen=True)
class Sample(Settings):
    steps: int = setting(3, "an int", within="[1, inf)", harmless=True)
    betas: tuple[float, float] = setting((0.9, 0.99), "two floats", within="[0, 1)", smoke=(0.5, 0.5))
    rate: float = setting(1.0, "a float", within="(0, inf)")
    kind: str | None = setting(None, "one of a few", one_of=(None, "a", "b"))
    fast: bool = setting(False, "a switch")


def test_plain_values_become_a_config_again():
    assert from_plain(Sample, {"betas": [0.5, 0.6], "steps": 1}, "sample") == Sample(betas=(0.5, 0.6), steps=1)
    with pytest.raises(UserError, match="unknown field sample.stepps; expected some of betas, fast, kind, rate, steps"):
        from_plain(Sample, {"stepps": 1}, "sample")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"steps": 0}, "steps=0; expected 1 to 2147483647"),
        ({"steps": 10**20}, "expected 1 to 2147483647"),
        ({"steps": 2.5}, "steps=2.5; expected a whole number"),
        ({"steps": True}, "steps=True; expected a whole number"),
        ({"betas": (0.5, 1.0)}, "expected a number in [0, 1)"),
        ({"betas": (0.5,)}, "betas=(0.5,); expected 2 numbers"),
        ({"rate": float("inf")}, "rate=inf; expected a finite number above 0"),
        ({"rate": float("nan")}, "rate=nan; expected a finite number above 0"),
        ({"rate": 0.0}, "rate=0.0; expected a finite number above 0"),
        ({"rate": 0}, "rate=0; expected a finite number above 0"),
        ({"betas": (0, 1)}, "expected a number in [0, 1)"),
        ({"kind": "c"}, "kind='c'; expected one of none, a, b"),
        ({"fast": "yes"}, "fast='yes'; expected True or False"),
    ],
    ids=str,
)
def test_a_value_out_of_its_bounds_is_refused_with_what_it_is_and_what_was_expected(wrong, expected):
    with pytest.raises(UserError) as error:
        Sample(**wrong)
    assert str(error.value).startswith("Sample: ") and expected in str(error.value)


def test_types_in_words():
    hints = {tuple[float, ...]: "numbers", tuple[int, ...]: "whole numbers", tuple[float, float]: "2 numbers"}
    hints |= {str | tuple[str, ...]: "a text or texts", float | None: "a number or none"}
    assert {hint: describe(hint) for hint in hints} == hints


def test_what_is_said_beside_a_field():
    assert smoked(Sample(steps=7)) == Sample(steps=7, betas=(0.5, 0.5))
    assert harmless({"sample": Sample}) == {"sample.steps"}
    assert Sample(betas=[0.1, 0.2]).betas == (0.1, 0.2)
