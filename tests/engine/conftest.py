from __future__ import annotations

from itertools import count

import pytest


@pytest.fixture(autouse=True, scope="module")
def a_minute_a_step():
    """The clock of the checkpoints, which is asked once a step: `checkpoint_every=2` saves after every second step."""
    with pytest.MonkeyPatch.context() as patch:
        minutes = count()
        patch.setattr("rmeeto.engine.preempt.monotonic", lambda: 60.0 * next(minutes))
        yield
