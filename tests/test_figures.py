"""Every figure is as new as what it was drawn from."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from benchmarks import labels
from fig import speed
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


@pytest.fixture(scope="module")
def speed_figure():
    return speed.draw(speed.data())


def test_the_names_of_models_cover_nothing_and_stay_within_the_frame(speed_figure):
    panels = [ax for ax in speed_figure.axes if ax.get_title().startswith("Accuracy and latency")]
    assert [ax.get_title()[-7:] for ax in panels] == ["batch 1", "batch 8"]
    speed_figure.draw_without_rendering()
    for ax in panels:
        boxes = {text: Text.get_window_extent(text) for text in ax.texts}  # without the line to the point
        assert {"vim_base", "levit_conv_256", "repvit_m1_1", "deit3_small"} < {text.get_text() for text in boxes}
        for text, box in boxes.items():
            frame = ax.get_window_extent()
            assert frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1, text
            for x0, y0, x1, y1 in labels.obstacles(ax):
                assert x1 < box.x0 or box.x1 < x0 or y1 < box.y0 or box.y1 < y0, text
        for (one, first), (other, second) in combinations(boxes.items(), 2):
            assert not first.overlaps(second), f"{one} and {other}"


def test_dense_is_filled_merged_is_open_and_each_family_has_a_shape(speed_figure):
    front = speed.read_json(speed.FRONT)["rows"]
    dense = {(row["median_ms"], row["reported_top1"]): not row["r"] for row in front if row["mode"] == "eager"}
    for ax in speed_figure.axes:
        if not ax.get_title().startswith("Accuracy and latency"):
            continue
        points = [line for line in ax.lines if line.get_marker() in tuple("os^Dv*")]
        for line in points:
            (at,) = line.get_xydata()
            assert (to_rgb(line.get_markerfacecolor()) != (1, 1, 1)) == dense[tuple(at)]
        names = {tuple(text.xy): text.get_text() for text in ax.texts}
        shapes = {(names[tuple(line.get_xydata()[0])].partition("_")[0], line.get_marker()) for line in points}
        shapes = {(family, marker) for family, marker in shapes if not family.startswith("r = ")}
        assert len(shapes) == len({marker for _, marker in shapes}) == 6
        assert [text.get_text() for text in ax.get_legend().texts][:2] == ["filled: dense", "open: merged, re-trained"]


def test_the_heading_says_what_was_measured_and_what_was_not(speed_figure):
    *_, middle, bottom = speed_figure.get_suptitle().splitlines()
    front = speed.read_json(speed.FRONT)
    assert f"latency is measured on {front['device']}" in middle
    assert "accuracy is as papers and timm's tables report it" in middle and "accuracy" not in bottom
