"""Tokens as regions: mean colours, borders that nothing hides, maps, and the history that they are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from image_task.models import Deit, Vim
from rmeeto.measure import merge_history, mosaic, trace
from rmeeto.measure.explain import Answer, clip_sheet, picture_sheet
from rmeeto.measure.sheet import clipped, font, wrapped
from rmeeto.merge import MergeConfig
from video_task.models import VideoMamba


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


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_two_tokens_beside_each_other_never_share_a_colour(seed):
    groups = np.random.default_rng(seed).integers(0, 9, (3, 5, 6))
    colours = mosaic.colours(groups)
    many = mosaic.sizes(groups) > 1
    for axis in range(3):
        near, far = ([np.take(x, range(s, x.shape[axis] - 1 + s), axis) for s in (0, 1)] for x in (groups, colours))
        both = np.logical_and(*(np.take(many, range(s, many.shape[axis] - 1 + s), axis) for s in (0, 1)))
        same = (far[0] == far[1]).all(-1)
        np.testing.assert_array_equal(same[both], (near[0] == near[1])[both])


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
    assert len(animation) == 4 and animation[0].size == (3 * 192 + 2 * 4, 192)
    assert sheet.width > 4 * 192 and sheet.height > 3 * 192


def test_texts_fit_their_width():
    face = font(12)
    assert face.getlength(clipped("x" * 500, 80, face)) <= 80
    lines = wrapped("some words and averyveryverylongwordindeed", 80, face)
    assert all(face.getlength(line) <= 80 for line in lines) and len(lines) > 2
