"""Tokens as regions: mean colours, borders that nothing hides, maps, and the history that they are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from image_task.models import Deit, Vim
from rmeeto import apply
from rmeeto.measure import merge_history, mosaic, trace
from rmeeto.measure.explain import (
    Answer,
    _about_tubes,
    _depth_map,
    _order_map,
    _size_map,
    clip_sheet,
    picture_sheet,
    tubes,
)
from rmeeto.measure.history import Step
from rmeeto.measure.sheet import clipped, font, placed, wrapped
from rmeeto.merge import MergeConfig
from video_task.models import VideoMamba


def luma(colours: np.ndarray) -> np.ndarray:
    """What is left of colours (..., 3) in grey."""
    return colours @ np.array([0.299, 0.587, 0.114])


def test_a_token_has_the_mean_colour_of_its_patches_wherever_they_are():
    clip = np.zeros((1, 20, 60, 3))
    clip[0, :, :20] = [1.0, 0.5, 0.25]
    clip[0, :, 20:40] = 0.75
    painted = mosaic.paint(clip, np.array([[[0, 1, 0]]]))[0]
    np.testing.assert_allclose(painted[10, 10], [0.5, 0.25, 0.125])
    np.testing.assert_allclose(painted[10, 50], [0.5, 0.25, 0.125])
    np.testing.assert_allclose(painted[10, 30], 0.75)


@pytest.mark.parametrize("colour", [0.0, 0.5, 1.0])
def test_a_border_is_seen_on_every_colour(colour):
    """Two tokens of the same colour: between them a light line between dark ones."""
    painted = mosaic.paint(np.full((1, 32, 64, 3), colour), np.array([[[0, 1]]]))[0]
    row = painted[16, :, 0]
    np.testing.assert_array_equal(row[[30, 31, 32, 33]], [0.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(row[np.r_[:30, 34:64]], colour)  # nothing at the picture's own edge


@given(st.integers(0, 2**32 - 1), st.sampled_from([9, 40]))
@settings(max_examples=20, deadline=None)
def test_two_tokens_beside_each_other_never_share_a_colour(seed, tokens):
    """40 tokens in pieces touch one another nearly all: more than the palette has colours."""
    groups = np.random.default_rng(seed).integers(0, tokens, (6, 12, 12))
    colours = mosaic.colours(groups)
    many = mosaic.sizes(groups) > 1
    for axis in range(3):
        near, far = ([np.take(x, range(s, x.shape[axis] - 1 + s), axis) for s in (0, 1)] for x in (groups, colours))
        both = np.logical_and(*(np.take(many, range(s, many.shape[axis] - 1 + s), axis) for s in (0, 1)))
        same = (far[0] == far[1]).all(-1)
        np.testing.assert_array_equal(same[both], (near[0] == near[1])[both])


def test_no_colour_of_a_tube_is_near_grey():
    """Grey says that a token is of one patch."""
    assert len(np.unique(mosaic.PALETTE, axis=0)) == 24
    assert np.ptp(mosaic.PALETTE, axis=1).min() > 0.35


def test_a_pruned_patch_is_hatched_and_colours_no_token():
    clip = np.zeros((1, 32, 32, 3))
    clip[0, :16, :16] = 1.0
    painted = mosaic.paint(clip, np.array([[[-1, 0], [0, 1]]]))[0]
    assert set(np.unique(painted[2:12, 2:12])) == {0.45, 0.95}
    np.testing.assert_allclose(painted[8, 24], 0.0)


def test_small_pictures_are_enlarged_so_that_borders_fit():
    assert mosaic.paint(np.zeros((1, 16, 16, 3)), np.zeros((1, 8, 8), dtype=int)).shape == (1, 128, 128, 3)


def test_sizes_and_depths():
    before, after = np.array([[[0, 1, 1, 2]]]), np.array([[[0, 1, 1, 0]]])
    np.testing.assert_array_equal(mosaic.sizes(before), [[[1, 2, 2, 1]]])
    np.testing.assert_array_equal(mosaic.sizes(np.array([[[-1, 0, 0]]])), [[[0, 2, 2]]])
    np.testing.assert_array_equal(mosaic.depths([(2, before), (4, after)]), [[[4, 2, 2, 4]]])
    np.testing.assert_array_equal(mosaic.depths([(2, before)]), [[[-1, 2, 2, -1]]])


@pytest.mark.parametrize("model_class", [Vim, Deit])
def test_the_history_is_that_of_the_merges(model_class):
    options = {"depth": 5, "num_classes": 3, "merge": MergeConfig(r=2)}
    model = Vim(16, 4, 4, embed_dim=16, **options) if model_class is Vim else Deit(16, 4, embed_dim=24, **options)
    x = torch.rand(2, 3, 16, 16)
    steps = merge_history(model.eval(), x)
    counts = [17, 15, 13] if model_class is Vim else [17, 15, 13, 11, 9, 7]
    assert [step.num_tokens for step in steps] == counts
    assert [step.block for step in steps] == ([-1, 2, 4] if model_class is Vim else [-1, 0, 1, 2, 3, 4])
    last = torch.nn.functional.one_hot(steps[-1].target, counts[-1]).transpose(1, 2)
    assert torch.equal(last.float(), trace(model, x))
    if model_class is Vim:
        assert [step.class_index for step in steps] == [8, 7, 6]


def test_a_transformer_without_a_class_token_has_none_in_its_history():
    model = timm.create_model("vit_wee_patch16_reg1_gap_256", img_size=64, depth=3).eval()
    steps = merge_history(apply(model, MergeConfig(r=3)), torch.rand(1, 3, 64, 64))
    assert [step.class_index for step in steps] == [None] * 4 and steps[-1].num_tokens == 17 - 9


def test_the_history_needs_a_model_that_can_be_followed():
    with pytest.raises(ValueError, match="training mode"):
        merge_history(Vim(16, 4, 4, embed_dim=16, depth=2), torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="got a Linear"):
        merge_history(torch.nn.Linear(2, 2), torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("trained", [True, False])
def test_a_sheet_of_a_picture_says_what_it_shows(trained):
    model = Vim(16, 4, 4, embed_dim=16, depth=5, num_classes=3, merge=MergeConfig(r=2)).eval()
    answer = Answer("cat.png", "vim", [("cat", 0.7), ("a very long name " * 9, 0.3)], "note", trained)
    pixels = np.random.default_rng(0).random((100, 100, 3))
    sheet = np.asarray(picture_sheet(model, torch.rand(1, 3, 16, 16), pixels, answer))
    red = (sheet[:40] == (170, 0, 0)).all(-1).mean() > 0.3
    assert red == (not trained)
    shown = (pixels.repeat(2, 0).repeat(2, 1) * 255 + 0.5).astype(np.uint8)  # 100 pixels, by a whole number
    places = [i for i in range(200) if np.array_equal(sheet[i : i + 200, 10:210], shown)]
    assert len(places) == 1  # the picture itself is there, pixel by pixel


@pytest.mark.parametrize(
    "merge", [MergeConfig(r=9), MergeConfig(r=9, prune=True), MergeConfig(r=9, class_position="exact")]
)
def test_a_sheet_of_a_clip_has_three_rows_and_as_many_frames(merge):
    model = VideoMamba(16, 4, embed_dim=16, depth=3, num_classes=3, num_frames=4, tubelet_size=2, merge=merge)
    frames = np.random.default_rng(0).random((4, 64, 64, 3))
    answer = Answer("a.mp4", "videomamba", [("left", 1.0)])
    sheet, animation = clip_sheet(model.eval(), torch.rand(1, 3, 4, 16, 16), frames, answer)
    assert len(animation) == 4 and len({frame.size for frame in animation}) == 1
    assert animation[0].width > 3 * 192 and animation[0].height > 192
    assert sheet.width > 4 * 192 and sheet.height > 3 * 192


@pytest.mark.parametrize("trained", [True, False])
def test_every_frame_of_an_animation_says_what_its_sheet_says(trained):
    model = VideoMamba(
        16, 4, embed_dim=16, depth=3, num_classes=3, num_frames=4, tubelet_size=2, merge=MergeConfig(r=9)
    )
    answer = Answer("a.mp4", "videomamba", [("left", 1.0)], trained=trained)
    sheet, animation = clip_sheet(model.eval(), torch.rand(1, 3, 4, 16, 16), np.zeros((4, 64, 64, 3)), answer)
    for picture in (sheet, *animation):
        upper = np.asarray(picture)[:100]
        assert ((upper == (170, 0, 0)).all(-1).mean() > 0.05) == (not trained)
        assert (upper == (20, 20, 20)).all(-1).any()  # the ink of the lines above
        lowest = np.asarray(picture)[-30:]  # the captions below the last row
        assert (lowest == (20, 20, 20)).all(-1).any()


def test_the_colours_of_tubes_are_told_as_they_are():
    """Two tubes have two colours; 30 tubes share those of the palette."""
    assert "Tubes (tokens of several patches): 2; each keeps" in _about_tubes(np.array([[[0, 0, 1, 1, 2]]]))
    many = np.arange(30).repeat(2).reshape(1, 6, 10)
    assert "30 in 24 colours, no two alike that touch" in _about_tubes(many)
    assert "none; grey" in _about_tubes(np.arange(4).reshape(1, 2, 2))
    assert "hatched: pruned" in _about_tubes(np.array([[[-1, 0, 1, 1]]]))
    drawn = tubes(np.full((1, 16, 64, 3), [0.2, 0.9, 0.1]), np.array([[[-1, 0, 1, 1]]]))
    assert np.ptp(drawn[0, 8, 24]) == 0 < np.ptp(drawn[0, 8, 40])  # a single patch is grey, a tube is not
    assert {0.45, 0.95} <= set(np.unique(drawn[0, :, :12]))


def test_the_bar_of_sizes_is_true_at_each_tick():
    """The colour of a token of so many patches is the colour at its tick, the ends included."""
    sizes = [2, 3, 4, 7]
    groups = np.concatenate([np.full(n, i) for i, n in enumerate(sizes)]).reshape(1, 4, 4)
    panel = _size_map(np.zeros((64, 64, 3)), groups)
    ticks = {word.split()[0]: place for place, word in panel.scale.ticks}
    assert ticks["2"] == 0 and ticks["7"] == 1 and "logarithmic" in panel.caption
    for token, size in enumerate(sizes):
        y, x = np.argwhere(groups[0] == token)[0]
        colour = panel.scale.colours[round(ticks[str(size)] * 255)]
        np.testing.assert_allclose(panel.pixels[16 * y + 8, 16 * x + 8], colour)
    np.testing.assert_allclose(ticks["4"], np.log(2) / np.log(3.5))


@pytest.mark.parametrize("most", [1, 2, 3, 150])
def test_a_bar_of_sizes_begins_and_ends_at_sizes_that_are_there(most):
    groups = np.concatenate([np.zeros(most, int), 1 + np.arange(196 - most)]).reshape(1, 14, 14)
    scale = _size_map(np.zeros((224, 224, 3)), groups).scale
    if most == 1:
        assert scale is None
    else:
        words = [word for _, _, word in placed(scale.ticks, 224, font(11))]
        assert f"{most} patches" in words and ("2" in words or most == 2)


def test_words_of_a_bar_never_meet():
    face = font(12)
    found = placed([(0, "block 1"), (1, "block 24"), (0.02, "2"), *((n / 40, f"{n}") for n in range(40))], 200, face)
    assert [word for *_, word in found][:2] == ["block 1", "block 24"]
    ends = sorted((start, start + face.getlength(word)) for start, _, word in found)
    assert ends[0][0] == 0 and ends[-1][1] <= 200
    assert all(before[1] < after[0] for before, after in zip(ends, ends[1:]))


def test_what_never_merged_stands_out_in_grey_from_every_colour_of_a_bar():
    groups = np.array([[[0, 0], [1, 2]]])
    for panel in (
        _size_map(np.zeros((64, 64, 3)), groups),
        _depth_map(np.zeros((64, 64, 3)), [(3, groups)], groups),
    ):
        alone = luma(panel.pixels[48, 16])
        assert abs(luma(panel.scale.colours) - alone).min() > 0.25
        assert "white: " in panel.caption


def test_a_pruned_patch_has_no_size():
    panel = _size_map(np.zeros((64, 64, 3)), np.array([[[-1, 0], [1, 1]]]))
    assert set(np.unique(panel.pixels[2:28, 2:28])) == {0.45, 0.95} and "hatched: pruned" in panel.caption


@pytest.mark.parametrize("brightness", ["black", "white", "noise"])
def test_sides_of_the_class_token_are_apart_in_grey_on_any_picture(brightness):
    """And a line, dark and light, is where they meet."""
    pixels = {"black": np.zeros((64, 64, 3)), "white": np.ones((64, 64, 3))}.get(
        brightness, np.random.default_rng(0).random((64, 64, 3))
    )
    groups = np.arange(16).reshape(1, 4, 4)
    groups[groups >= 8] += 1  # the class token is number 8 of 17
    step = Step(-1, torch.zeros(1, 17), 8, 17)
    panel = _order_map(pixels, [step, step], groups)
    grey = luma(panel.pixels)
    assert grey[:28].max() < 0.4 < 0.6 < grey[36:].min()
    assert (grey[28:36].min(0) == 0).all() and (grey[28:36].max(0) > 0.99).all()
    assert "dark: the tokens before it" in panel.caption
    assert "no token is before it" in _order_map(pixels, [Step(-1, step.target, 0, 17)] * 2, groups).caption


def test_texts_fit_their_width():
    face = font(12)
    assert face.getlength(clipped("x" * 500, 80, face)) <= 80
    lines = wrapped("some words and averyveryverylongwordindeed", 80, face)
    assert all(face.getlength(line) <= 80 for line in lines) and len(lines) > 2
