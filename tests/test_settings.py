from __future__ import annotations

from dataclasses import dataclass

import pytest

from rmeeto.errors import UserError
from rmeeto.settings import from_plain, setting


@dataclass(frozen=True)
class Sample:
    steps: int = setting(3, "an int")
    betas: tuple[float, float] = setting((0.9, 0.99), "two floats")


def test_plain_values_become_a_config_again():
    assert from_plain(Sample, {"betas": [0.5, 0.6], "steps": 1}, "sample") == Sample(
        betas=(0.5, 0.6), steps=1
    )
    with pytest.raises(UserError, match="unknown field sample.stepps; expected some of betas, steps"):
        from_plain(Sample, {"stepps": 1}, "sample")
