"""Every figure is as new as what it was drawn from."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from fig.make import FIGURES
from fig.record import ROOT, digest, recorded


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_not_older_than_its_data(name):
    drawing = FIGURES[name]
    assert recorded(drawing.path) == digest(drawing.data), f"run python fig/make.py {name}"


def test_every_figure_of_the_documents_is_drawn_by_the_script():
    there = {path for folder in ("fig", "docs") for path in (ROOT / folder).glob("*.png")}
    assert there == {drawing.path for drawing in FIGURES.values()}


def test_a_digest_knows_names_and_contents(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("1"), second.write_text("2")
    one = digest([first, second])
    assert one == digest([first, second])
    second.write_text("3")
    assert digest([first, second]) != one
    first.rename(tmp_path / "c"), second.write_text("2")
    assert digest([tmp_path / "c", second]) != one


def test_figures_are_large_enough_to_read_and_small_enough_to_load():
    for name, drawing in FIGURES.items():
        with Image.open(drawing.path) as image:
            assert image.width >= 600, name
        assert drawing.path.stat().st_size < 400_000, name


def test_documents_show_figures_that_are_there():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
