"""Frames and crops of a view: the recorded numbers, and what holds for any clip."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden_data import FOLDER
from video_task.data import sampling

FRAMES, CROPS = np.load(FOLDER / "k400_frames.npz"), np.load(FOLDER / "k400_crops.npz")


def _cases(file):
    return sorted({name.split("/")[0] for name in file.files})


@pytest.mark.parametrize("case", _cases(FRAMES))
def test_sparse_sampling_equals_the_recorded_frames(case):
    config = json.loads(str(FRAMES[f"{case}/config"]))
    count, length, segments = config["num_frames"], config["video_len"], config["test_num_segment"]
    checked = set()
    for name in FRAMES.files:
        kind = name.removeprefix(f"{case}/")
        if kind.startswith("train_seed"):
            rng = random.Random(int(kind.removeprefix("train_seed")))
            frames = [sampling.sparse_frames(count, length, rng) for _ in range(4)]
        elif kind == "validation":
            frames = sampling.sparse_view(count, length)
        elif kind == "test":
            frames = [sampling.sparse_view(count, length, segment, segments) for segment in range(segments)]
        else:
            continue
        checked.add(kind[:5])
        assert np.array_equal(frames, FRAMES[name])
    assert checked == {"train", "valid", "test"}


@pytest.mark.parametrize("case", _cases(CROPS))
def test_crops_and_their_order_equal_the_recorded_ones(case):
    config = json.loads(str(CROPS[f"{case}/config"]))
    crops = config["test_num_crop"]
    corners = sampling.crop_corners(config["height"], config["width"], config["short_side"], crops)
    views = sampling.view_order(config["test_num_segment"], crops)
    rows = [(segment, crop, *corners[crop]) for segment, crop in views]
    assert np.array_equal(rows, CROPS[f"{case}/segment_crop_top_left"])


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 400), st.integers(1, 5), st.integers(0, 99))
def test_every_view_lies_in_the_clip_in_the_order_of_time(count, stride, length, segments, seed):
    rng = random.Random(seed)
    views = [sampling.sparse_frames(count, length, rng), sampling.dense_frames(count, stride, length, rng)]
    for segment in range(segments):
        views.append(sampling.sparse_view(count, length, segment, segments))
        views.append(sampling.dense_view(count, stride, length, segment, segments))
    for view in views:
        assert len(view) == count and view == sorted(view) and 0 <= view[0] and view[-1] < length


def test_dense_views_reach_from_the_first_frame_to_the_last():
    assert sampling.dense_view(4, 3, 100, 0, 3) == [0, 3, 6, 9]
    assert sampling.dense_view(4, 3, 100, 1, 3) == [45, 48, 51, 54]
    assert sampling.dense_view(4, 3, 100, 2, 3) == [90, 93, 96, 99]
    assert sampling.dense_view(4, 3, 100) == [45, 48, 51, 54]


def test_dense_training_reaches_every_start_and_repeats_the_last_frame_of_a_short_clip():
    rng = random.Random(0)
    starts = {sampling.dense_frames(4, 2, 10, rng)[0] for _ in range(200)}
    assert starts == {0, 1, 2, 3}
    assert sampling.dense_frames(4, 2, 4, rng) == [0, 2, 3, 3]


def test_a_crop_smaller_than_the_short_side_lies_in_its_middle():
    assert sampling.crop_corners(256, 340, 224, 3) == [(16, 0), (16, 58), (16, 116)]
    assert sampling.crop_corners(340, 256, 224, 1) == [(58, 16)]
