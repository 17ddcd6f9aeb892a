"""Numbers that no run can have: refused by every flag, in a line, before anything is done with them."""

from __future__ import annotations

import dataclasses
import json
from typing import get_args, get_type_hints

import pytest

from image_task import flags as image
from image_task.config import Config
from rmeeto.errors import UserError
from video_task import flags as video
from video_task.config import VideoConfig


def numbers(config: type) -> list[str]:
    """The flags that take numbers."""
    found = []
    for section in config.sections().values():
        hints = get_type_hints(section)
        for field in dataclasses.fields(section):
            if {int, float} & {hints[field.name], *get_args(hints[field.name])}:
                found.append(field.name)
    return found


CASES = [(image.parse, name) for name in numbers(Config)] + [(video.parse, name) for name in numbers(VideoConfig)]


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e400", "99999999999999999999", "-1"])
@pytest.mark.parametrize(("parse", "name"), CASES, ids=[f"{p.__self__.prog[10:15]}-{n}" for p, n in CASES])
def test_a_number_out_of_reach_is_refused_or_an_ordinary_one(parse, name, text):
    try:
        config, _, _ = parse([f"--{name}={text}"])
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and name in str(error)
        return
    assert text == "99999999999999999999", "a large finite float is one, and nothing else"
    values = [getattr(section, name, None) for section in vars(config).values()]
    assert any(isinstance(value, float) for value in values)
    json.dumps(config.to_dict(), allow_nan=False)


@pytest.mark.parametrize("line", ["--cutmix 1e-320", "--mixup 1e-9", "--cutmix_minmax nan 1", "--betas 0.9 inf"])
def test_other_numbers_that_cannot_be_drawn_or_optimised_with_are_refused(line):
    with pytest.raises(UserError, match="expected"):
        image.parse(line.split())
