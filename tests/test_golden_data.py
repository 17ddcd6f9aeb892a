"""The weight rule and the seeded numbers that every golden test rests on."""

import numpy as np
import pytest

from tests.golden_data import Case, names, randn, rule


@pytest.mark.parametrize("name", names("rule_check.npz"))
def test_rule_gives_the_recorded_values(name):
    case = Case("rule_check.npz", name)
    shape = tuple(case.config["shape"])
    value = randn(case.config["key"], shape) if name == "input" else rule(name, shape)
    assert np.allclose(value.numpy(), case["value"], rtol=1e-6, atol=1e-7)
