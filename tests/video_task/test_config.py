"""The settings of video data: every one is read, every wrong one refused."""

import dataclasses
import re
from pathlib import Path

import pytest

from rmeeto.errors import UserError
from video_task.config import VideoDataConfig

ROOT = Path(__file__).resolve().parents[2]


def test_every_field_is_read():
    sources = [*(ROOT / "video_task" / "data").glob("*.py"), ROOT / "rmeeto" / "data" / "augment.py"]
    text = "\n".join(path.read_text() for path in sources)
    names = {field.name for field in dataclasses.fields(VideoDataConfig)}
    names -= {"input_size"}  # of the model, which is built elsewhere
    names -= {"sampling"}  # behind config.dense
    unread = [name for name in names if not re.search(rf"config\.{name}\b", text)]
    assert not unread and "config.dense" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"reprob": 1.5},
        {"max_unreadable": -0.1},
        {"num_frames": 0},
        {"num_sample": 0},
        {"test_num_crop": 0},
        {"max_redraws": -1},
        {"sampling": "random"},
        {"fold": 4},
        {"remode": "noise"},
        {"train_interpolation": "random"},
        {"short_side_size": 0},
        {"decode_seconds": 0.0},
        {"split": ""},
        {"batch_size": 3, "num_sample": 1},
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_by_name(wrong):
    with pytest.raises(UserError, match=f"VideoDataConfig: {next(iter(wrong))}="):
        VideoDataConfig(**wrong)


def test_odd_batches_are_fine_where_nothing_is_mixed():
    for off in ({"mixup": 0.0, "cutmix": 0.0}, {"augment": False}):
        assert not VideoDataConfig(batch_size=3, num_sample=1, **off).mixes


def test_sampling_follows_the_name_of_the_data_set_unless_it_is_set():
    assert VideoDataConfig(data_set="Kinetics").dense and not VideoDataConfig().dense
    assert VideoDataConfig(sampling="dense").dense
    assert not VideoDataConfig(data_set="Kinetics", sampling="sparse").dense
